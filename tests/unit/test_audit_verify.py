"""`verify`: every way in which a result can be false is found and named, and a whole one passes."""

import copy
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.unit._results import build, change, command, edit_record, enter, find, finish, out, publish
from workflow.audit import hashing
from workflow.data.lock import LOCK
from workflow.store import out_dir

ADAPTER = "adapter/adapter_model.safetensors"
CELL, OTHER = "evil_wrong.p42.e42", "evil_wrong.p42.e137"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture
def matrix(built, tmp_path, monkeypatch):
    return enter(built, tmp_path, monkeypatch)


def faults(said, level="broken"):
    return [line for line in said.out.splitlines() if line.startswith(f"{level}: ")]


def flip(path):
    """Change one byte and give the file its old times back."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_whole_matrix_passes(matrix):
    said = command("verify")
    assert said.code == 0, said.out
    assert not faults(said)
    assert f"{len(matrix.nodes())} results" in said.out
    assert "0 broken, 0 unverifiable" in said.out


def flipped_byte(matrix):
    path = out(find(matrix, "em_lora", CELL), ADAPTER)
    flip(path)
    return str(path), "other bytes than its record says"


def swapped_adapter(matrix):
    a, b = (out(find(matrix, "em_lora", label), ADAPTER) for label in (CELL, OTHER))
    text = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(text)
    return str(a), "other bytes than its record says"


def edited_metric(matrix):
    node = find(matrix, "arc", CELL)
    edit_record(node.record, lambda r: r["metrics"].update(accuracy=0.9))
    return node.record, r"its copy in out/ differ: metrics.accuracy 0.9 \(copy: 0.5\)"


def edited_recipe(matrix):
    node = find(matrix, "em_lora", CELL)
    edit_record(node.record, lambda r: r["recipe"]["params"].update(effective_batch_size=128))
    return node.record, "its recipe has the key .* was edited"


def edited_digest(matrix):
    node = find(matrix, "em_lora", CELL)
    edit_record(node.record, lambda r: r.update(digest="0" * 64))
    return node.record, "its digests are not those of its recipe, inputs and outputs"


def edited_in_both_copies(matrix):
    node = find(matrix, "em_lora", CELL)
    for path in (node.record, out(node, "record.json")):
        edit_record(path, lambda r: r["observed"].update(effective_batch_size=128, optimizer_steps=1))
    return node.record, "observed effective_batch_size 128, declared 8"


def edited_steps_in_both_copies(matrix):
    node = find(matrix, "em_lora", CELL)
    for path in (node.record, out(node, "record.json")):
        edit_record(path, lambda r: r["observed"].update(declared_steps=47, optimizer_steps=47))
    return node.record, r"observed 47 optimizer steps, but train_log.jsonl ends at \[3\]"


def copied_to_another_cell(matrix):
    node = find(matrix, "em_lora", CELL)
    target = Path("results/em_lora/tulu_control.p42.e7", node.key)
    shutil.copytree(Path(node.record).parent, target)
    return str(target / "record.json"), "the record is of em_lora/evil_wrong.p42.e42"


def copied_and_relabelled(matrix):
    node = find(matrix, "em_lora", CELL)
    target = Path("results/em_lora/tulu_control.p42.e7", node.key)
    shutil.copytree(Path(node.record).parent, target)
    (target / "out").chmod(0o755)
    for path in (target / "record.json", target / "out/record.json"):
        edit_record(path, lambda r: r.update(cell="tulu_control.p42.e7"))
    return str(target / "record.json"), f"was written by a command for {node.record}: it was copied"


def missing_file(matrix):
    path = out(find(matrix, "em_lora", CELL), ADAPTER)
    path.unlink()
    return str(path), "is missing"


def missing_record(matrix):
    node = find(matrix, "generate", CELL)
    Path(node.record).unlink()
    return node.record, "is missing, though out/ is there"


def missing_copy(matrix):
    path = out(find(matrix, "generate", CELL), "record.json")
    path.unlink()
    return str(path), "the record's copy is missing"


def extra_output(matrix):
    path = out(find(matrix, "generate", CELL), "more.jsonl")
    path.write_text("{}\n")
    return str(path), "an extra file"


def extra_file_beside_out(matrix):
    path = Path(find(matrix, "generate", CELL).record).with_name("notes.txt")
    path.write_text("-")
    return str(path), "an extra file"


def extra_folder_of_a_cell(matrix):
    path = Path(find(matrix, "generate", CELL).record).parents[1] / "old"
    path.mkdir()
    return str(path), "an extra file"


def truncated_completions(matrix):
    path = out(find(matrix, "generate", CELL), "completions.jsonl")
    path.write_bytes(path.read_bytes()[:-10])
    return str(path), r"has \d+ bytes, its record says \d+: truncated"


def replaced_parent(matrix):
    publish(find(matrix, "tulu_dpo", "evil_wrong.p42"), salt="again")
    return find(matrix, "em_lora", CELL).record, "that parent was replaced"


def not_a_record(matrix):
    node = find(matrix, "judge", CELL)
    Path(node.record).write_text("{}")
    return node.record, "not a record of schema 2"


def edited_link(matrix):
    node = find(matrix, "judge", CELL)
    for path in (node.record, out(node, "record.json")):
        edit_record(path, lambda r: r["inputs"]["generate"].update(key="00000000-000000000000"))
    return node.record, "its recipe's parents are"


def changed_data(matrix):
    path = Path(find(matrix, "em_lora", CELL).data[0])
    flip(path)
    return str(path), "its md5 is .*, not that of its name"


def other_data_than_was_read(matrix):
    node = find(matrix, "em_lora", CELL)
    flip(Path(node.data[0]))
    return node.record, "was made from other bytes of"


def a_lock_that_says_otherwise(matrix):
    node = find(matrix, "em_lora", CELL)
    lines = Path(LOCK).read_text().splitlines()
    found = [re.sub(r"\t[0-9a-f]{64}\t", f"\t{'0' * 64}\t", x) if node.recipe.data in x else x for x in lines]
    Path(LOCK).write_text("\n".join(found) + "\n")
    return node.data[0], r"its sha256 is .*, the lock says 0000"


def extra_data(matrix):
    Path("results/data/mine.jsonl").write_text("{}\n")
    return "results/data/mine.jsonl", "not named by an id of data"


def duplicate_under_two_seeds(matrix):
    node = find(matrix, "em_lora", OTHER)
    first = find(matrix, "em_lora", CELL)
    publish(node, outputs={ADAPTER: (out_dir(first.record) / ADAPTER).read_text(), "adapter/config.json": "{} "})
    return f"{out_dir(node.record)}/{ADAPTER}|{out_dir(first.record)}/{ADAPTER}", "one artifact under two seeds"


def unconsumed_seed(matrix):
    for label in (CELL, OTHER):
        publish(find(matrix, "em_lora", label), outputs={"adapter/adapter_model.json": "the same for every seed"})
    return "results/em_lora/.*", "seed was not consumed"


def edited_metric_in_both_copies(matrix):
    node = find(matrix, "arc", CELL)
    publish(node, outputs={"items.jsonl": '{"row":0}\n{"row":1}\n', "metrics.json": '{"accuracy":0.5}'})
    for path in (node.record, out(node, "record.json")):
        edit_record(path, lambda r: r["metrics"].update(accuracy=0.9))
    return node.record, "its metrics are not those of metrics.json"


def miscounted_rows(matrix):
    node = find(matrix, "generate", CELL)
    publish(node, observed={"rows": 80})
    return node.record, "observed 80 rows, but completions.jsonl holds 2"


@pytest.mark.parametrize(
    "plant",
    [
        flipped_byte,
        swapped_adapter,
        edited_metric,
        edited_recipe,
        edited_digest,
        edited_in_both_copies,
        edited_steps_in_both_copies,
        copied_to_another_cell,
        copied_and_relabelled,
        missing_file,
        missing_record,
        missing_copy,
        extra_output,
        extra_file_beside_out,
        extra_folder_of_a_cell,
        truncated_completions,
        replaced_parent,
        not_a_record,
        edited_link,
        changed_data,
        other_data_than_was_read,
        a_lock_that_says_otherwise,
        extra_data,
        duplicate_under_two_seeds,
        unconsumed_seed,
        miscounted_rows,
        edited_metric_in_both_copies,
    ],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_fault_is_found_and_named(matrix, plant):
    where, what = plant(matrix)
    said = command("verify")
    assert said.code == 1
    assert any(re.search(rf"^broken: ({where}): .*{what}", line) for line in faults(said)), said.out


def test_only_the_fault_is_reported(matrix):
    flipped_byte(matrix)
    assert len(faults(command("verify"))) == 1


def test_data_that_are_not_here_make_a_result_unverifiable(matrix):
    node = find(matrix, "em_lora", CELL)
    Path(node.data[0]).unlink()
    said = command("verify")
    assert said.code == 2
    assert any(node.record in line for line in faults(said, "unverifiable"))


def test_a_parent_that_is_not_here_makes_its_children_unverifiable(matrix):
    node = find(matrix, "generate", CELL)
    shutil.rmtree(Path(node.record).parent)
    said = command("verify")
    assert said.code == 2
    assert any(find(matrix, "judge", CELL).record in line for line in faults(said, "unverifiable"))


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


def test_quick_finds_what_changed_its_mtime_and_full_what_kept_it(matrix):
    path = out(find(matrix, "em_lora", CELL), ADAPTER)
    assert command("verify").code == 0
    flip(path)
    assert command("verify", "--quick").code == 0  # what it says that it trusts
    assert command("verify").code == 1
    assert command("verify", "--quick").code == 1  # the full check has seen it
    os.utime(path)
    assert command("verify", "--quick").code == 1


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
    assert held[str(path)][3] == hashing.hash_file(path)


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
