"""`verify`: every way in which a result can be false is found and named, and a whole one passes."""

import copy
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.unit._results import build, change, command, enter, find, finish, out, publish
from tests.unit._tampering import ADAPTER, CELL, flip, flipped_byte, replaced_parent
from workflow.audit import hashing
from workflow.store import out_dir


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture
def matrix(built, tmp_path, monkeypatch):
    return enter(built, tmp_path, monkeypatch)


def faults(said, level="broken"):
    return [line for line in said.out.splitlines() if line.startswith(f"{level}: ")]


def test_a_whole_matrix_passes(matrix):
    said = command("verify")
    assert said.code == 0, said.out
    assert not faults(said)
    assert f"{len(matrix.nodes())} results" in said.out
    assert "0 broken, 0 unverifiable" in said.out


def test_one_bad_byte_is_a_fault_a_cure_and_a_count(matrix):
    path, _ = flipped_byte(matrix)
    lines = command("verify").out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"broken: {path}: has other bytes")
    place = "/".join(Path(path).parts[1:4])
    below = matrix.descendants(find(matrix, "em_lora", CELL)) - {find(matrix, "em_lora", CELL)}
    assert f"`matrix redo {place} --reason ...` and `snakemake all`; {len(below)} results rest on it" in lines[1]


def test_one_bad_byte_of_data_is_a_few_lines_whatever_was_made_from_it(matrix):
    node = find(matrix, "em_lora", CELL)
    flip(Path(node.data[0]))
    told = faults(command("verify"))
    assert all(line.startswith(f"broken: {node.data[0]}: ") for line in told)
    assert len(told) <= 4
    assert any("(and " in line for line in told)


def test_a_replaced_parent_is_one_line_with_a_count(matrix):
    replaced_parent(matrix)
    told = faults(command("verify"))
    assert len(told) == 1
    assert told[0].startswith(f"broken: {find(matrix, 'tulu_dpo', 'evil_wrong.p42').record}: was replaced")
    assert re.search(r"\(and \d+ more results\) .* Run `snakemake all`", told[0])


def test_data_that_are_not_here_make_a_result_unverifiable(matrix):
    node = find(matrix, "em_lora", CELL)
    Path(node.data[0]).unlink()
    said = command("verify")
    assert said.code == 2
    assert any(node.data[0] in line for line in faults(said, "unverifiable"))


def test_a_parent_that_is_not_here_makes_its_children_unverifiable(matrix):
    node = find(matrix, "generate", CELL)
    shutil.rmtree(Path(node.record).parent)
    said = command("verify")
    assert said.code == 2
    assert any(find(matrix, "judge", CELL).record in line for line in faults(said, "unverifiable"))


def test_a_reference_that_was_made_again_makes_dpo_unverifiable(matrix):
    node, dpo = find(matrix, "dpo_reference", "evil_wrong.p42"), find(matrix, "tulu_dpo", "evil_wrong.p42")
    publish(node, salt="other numbers")
    said = command("verify")
    (told,) = faults(said, "unverifiable")
    assert said.code == 2
    assert told.startswith(f"unverifiable: {dpo.record}: the reference that it read (content ")


def test_broken_outweighs_unverifiable(matrix):
    Path(find(matrix, "em_lora", CELL).data[0]).unlink()
    flip(out(find(matrix, "arc", CELL), "items.jsonl"))
    assert command("verify").code == 1


def test_results_of_another_key_are_checked_too(matrix):
    old = find(matrix, "judge", CELL)
    change(lambda raw: raw["instruments"][0]["judge"].update(max_tokens=17))
    flip(out(old, "judgments.jsonl"))
    said = command("verify")
    assert said.code == 1
    assert "not of this plan" in said.out


def test_a_job_at_work_is_not_broken(matrix):
    node = find(matrix, "judge", CELL)
    shutil.rmtree(Path(node.record).parent)
    shutil.rmtree(Path(matrix.report.record).parent)
    Path(node.record).parent.mkdir()
    Path(node.record).with_name(f".{os.uname().nodename}.{os.getpid()}.tmp").mkdir()
    Path(node.record).with_name("journal.jsonl").write_text("{}\n")
    said = command("verify")
    assert said.code == 0, said.out
    assert "a job is at work there" in said.out


def test_older_results_that_were_set_aside_are_no_fault(matrix):
    publish(matrix.report, salt="again", outputs={"scores.csv": "other"})
    assert command("verify").code == 0


# --- quick ----------------------------------------------------------------------------------------------------------


def test_quick_reads_nothing_that_a_full_check_has_seen(matrix, monkeypatch):
    assert command("verify").code == 0
    read = []
    monkeypatch.setattr(hashing, "hash_file", lambda path, *_: read.append(path))
    assert command("verify", "--quick").code == 0
    assert read == []


def test_quick_without_a_full_check_reads_everything(matrix):
    flipped_byte(matrix)
    assert command("verify", "--quick").code == 1


def test_quick_finds_what_changed_and_was_given_its_old_times(matrix):
    path = out(find(matrix, "em_lora", CELL), ADAPTER)
    assert command("verify").code == 0
    flip(path)
    assert command("verify", "--quick").code == 1
    assert command("verify").code == 1
    assert command("verify", "--quick").code == 1  # the full check has seen it, and keeps no hash of it


def test_no_hash_of_bytes_that_failed_is_kept(matrix):
    path, _ = flipped_byte(matrix)
    data = Path(find(matrix, "arc", CELL).data[0])
    flip(data)
    assert command("verify").code == 1
    held = json.loads(Path(hashing.CACHE).read_text())["files"]
    assert not {path, str(data)} & held.keys()
    assert held


def test_the_cache_is_written_over_no_link(matrix, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("keep")
    Path(hashing.CACHE).symlink_to(precious)
    assert command("verify").code == 0
    assert precious.read_text() == "keep"


def test_a_damaged_cache_is_not_trusted(matrix):
    assert command("verify").code == 0
    Path(hashing.CACHE).write_text("[]")
    flipped_byte(matrix)
    assert command("verify", "--quick").code == 1


def test_the_pool_gives_the_hash_of_every_file(tmp_path):
    paths = [tmp_path / str(n) for n in range(20)]
    for n, path in enumerate(paths):
        path.write_bytes(bytes([n]) * n)
    found = hashing.hash_files(map(str, paths), {}, with_md5={str(paths[3])}, workers=4)
    assert {p: found[str(p)].sha256 for p in paths} == {p: hashing.hash_file(p) for p in paths}
    assert [name for name, known in found.items() if known.md5] == [str(paths[3])]


# --- reruns ---------------------------------------------------------------------------------------------------------


def test_reruns_of_one_recipe_are_compared(matrix):
    def wish(raw):
        raw["replicates"] = [{"stage": "arc", "cell": CELL, "up_to": 3}]

    again = change(wish)
    publish(find(again, "arc", f"{CELL}.r2"), salt="", metrics={"accuracy": 0.5})
    publish(find(again, "arc", f"{CELL}.r3"), salt="other", metrics={"accuracy": 0.75})
    finish(again)
    said = command("verify")
    assert said.code == 0, said.out
    assert f"rerun: arc/{CELL}.r2: 1 of 1 outputs byte-equal; every metric equal" in said.out
    assert f"rerun: arc/{CELL}.r3: 0 of 1 outputs byte-equal; accuracy 0.5 -> 0.75 (+0.25)" in said.out


def test_retracted_results_are_told_but_whole(matrix):
    node = find(matrix, "em_lora", CELL)
    assert command("retract", f"em_lora/{CELL}/{node.key}", "--reason", "47 steps").code == 0
    said = command("verify")
    assert said.code == 0, said.out
    assert f"retracted: {node.record}: 47 steps" in said.out


def test_what_is_no_result_is_left_alone(matrix):
    for path in ("results/README.md", "results/reference/report/index.html"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("-")
    Path("results/report/latest.html").symlink_to("test")
    assert command("verify").code == 0
    assert command("gc", "--yes").code == 0
    assert Path("results/reference/report/index.html").exists()


def test_the_cache_holds_what_was_read(matrix):
    assert command("verify").code == 0
    held = json.loads(Path(hashing.CACHE).read_text())["files"]
    path = out_dir(find(matrix, "em_lora", CELL).record) / ADAPTER
    assert held[str(path)][4] == hashing.hash_file(path)


def test_completions_that_differ_in_their_seeds_alone_are_a_seed_that_was_not_consumed(matrix):
    def edit(raw):
        second = copy.deepcopy(raw["instruments"][0])
        second["name"] = "again"
        second["sampler"]["seed"] += 1
        raw["instruments"].append(second)

    now = change(edit)
    for node in [n for n in now.nodes("generate") if n.label == CELL]:
        seed = node.recipe.params["sampler"]["seed"]
        rows = [json.dumps({"completion": f"text {n}", "seed": seed + n}) for n in range(2)]
        publish(node, outputs={"completions.jsonl": "\n".join(rows) + "\n"})
    assert "sampler.seed was not consumed" in command("verify").out
