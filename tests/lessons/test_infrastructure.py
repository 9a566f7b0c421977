"""Jobs that end badly, files that are not what they were, machines, secrets, costs, and what is said of them."""

import os
import re
import stat
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fake import finish, stand_ins
from tests.lessons.planted import PROVENANCE, demo
from tests.toy import inside, put_data, train_em
from workflow import provenance
from workflow.audit.diff import diff
from workflow.audit.garbage import collect
from workflow.audit.replicates import compare as compare_reruns
from workflow.config import Config, ConfigError
from workflow.data import world
from workflow.data.lock import write_pins
from workflow.keys import Recipe
from workflow.matrix import Matrix
from workflow.retractions import Retraction, retracted
from workflow.sections import JudgePlacement
from workflow.stage import Result, StageError, execute, run_stage
from workflow.store import StoreError, check_outputs, out_dir, read_record, record_path

SECRET = "sk-planted-4f9a1c"


def recipe_of(data="0" * 32, **params):
    return Recipe("arc", 1, data, params)


def writes(text):
    """A stage that writes one file."""

    def run(job):
        (job.out / "items.jsonl").write_text(text)
        return Result({"rows": 1}, {"accuracy": float(len(text))})

    return run


def made(run, cell="cell.p42", recipe=None):
    recipe = recipe or recipe_of()
    path = Path(record_path("arc", cell, recipe.key))
    execute("workflow.evals.arc", run, recipe, {}, [], None, path, ["arc"])
    return path


@pytest.fixture
def project(tmp_path):
    with inside(tmp_path):
        yield tmp_path


@pytest.fixture
def matrix(checkout):
    """A finished demo of stand-ins, in a project."""
    config = Config.from_dict({**demo(), "em_seeds": [42, 137]})
    pins = stand_ins(config)
    with inside(checkout):
        write_pins(list(pins.values()))
        found = Matrix(config, pins, "config/demo.yaml")
        finish(found, checkout)
        yield found


# --- 18: reruns -----------------------------------------------------------------------------------------------------


def test_lesson_18_a_rerun_that_differs_is_kept_beside_the_first_and_told(project):
    first = read_record(made(writes("one")))
    again = read_record(made(writes("other"), cell="cell.p42.r2"))
    told = str(compare_reruns(first, again))
    assert "0 of 2 outputs byte-equal" in told
    assert "accuracy 3 -> 5" in told


def test_lesson_18_nothing_overwrites_a_finished_result(project, capsys):
    path = made(writes("one"))
    first = read_record(path)
    path.unlink()
    made(writes("another"))
    assert read_record(path).digest == first.digest, "verified and restored, not computed again"
    path.unlink()
    file = out_dir(path) / "items.jsonl"
    file.chmod(0o644)
    file.write_text("spoilt")
    made(writes("another"))
    assert read_record(path).digest != first.digest
    (aside,) = path.parent.glob("superseded.*")
    assert aside.name == f"superseded.{first.digest[:12]}"
    assert "the earlier result is not whole, or does not fit" in capsys.readouterr().err


# --- 29, 61: what differs -------------------------------------------------------------------------------------------


def test_lesson_29_the_control_differs_from_the_others_in_what_the_list_says(matrix):
    found = {d.stage: d.groups for d in diff(matrix, "tulu_control.p42", "evil_wrong.p42")}
    assert [c.old for c in found["coupling_sft"]["recipe"]] == ["(no such stage)"]
    assert {c.field for c in found["tulu_sft"]["recipe"]} == {"parents.coupling_sft", "parents.base"}
    assert not found["tulu_sft"]["data"]


def test_lesson_61_a_comparison_lists_every_difference(checkout):
    raw = {**demo(), "em_seeds": [42, 137]}
    raw["stages"]["em_lora"]["learning_rate"] = 1e-4
    config = Config.from_dict(raw)
    pins = stand_ins(config)
    with inside(checkout):
        write_pins(list(pins.values()))
        matrix = Matrix(config, pins, "config/demo.yaml")
        finish(matrix, checkout)
        found = {d.stage: d.groups for d in diff(matrix, "evil_wrong.p42.e42", "evil_wrong.p42.e137")}
        assert {c.field for c in found["em_lora"]["recipe"]} == {"params.seed"}
        across = {d.stage: d.groups for d in diff(matrix, "evil_wrong.p42.e42", "good_correct.p42.e137")}
        assert {c.field for c in across["em_lora"]["recipe"]} == {"params.seed", "parents.tulu_dpo"}
        assert "name" in {c.field for c in across["coupling_sft"]["data"]}


# --- 43-46: what is lost --------------------------------------------------------------------------------------------


def test_lesson_43_only_gc_deletes_and_never_what_a_plan_or_a_record_names(matrix):
    assert collect(matrix, alone=True).waste == []
    stray = Path("results/em_lora/old.p42.e1/00000000-000000000000")
    stray.mkdir(parents=True)
    (stray / "note").write_text("x")
    (waste,) = collect(matrix, alone=True).waste
    assert (waste.path, waste.why) == (str(stray), "no plan names this key")
    assert stray.exists(), "collecting shows, it does not remove"
    finished = next(n for n in matrix.nodes("tulu_dpo"))
    assert not os.stat(out_dir(finished.record)).st_mode & stat.S_IWUSR, "nobody deletes from it by mistake"


def test_lesson_44_a_save_that_fails_does_so_before_the_first_step(toy_project, monkeypatch, capsys):
    from workflow.train import models

    def full(*_):
        raise StageError("the disk is full (model). Free some space and run again.")

    with inside(toy_project.root):
        monkeypatch.setattr(models, "save", full)
        with pytest.raises(StageError, match="the disk is full"):
            train_em(toy_project.base_path, world.em_rows(1)[:32], toy_project.params, "cell.p42.e44")
    assert "step 1/" not in capsys.readouterr().err


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_lesson_45_a_loss_that_is_no_number_stops_the_job(loss):
    from workflow.train.trainer import Progress

    state = SimpleNamespace(global_step=3, max_steps=10, epoch=0.3)
    with pytest.raises(StageError, match=r"step 3: the loss is (nan|inf).* Training stopped"):
        Progress().log(state, {"loss": loss})
    with pytest.raises(StageError, match="the gradient norm nan"):
        Progress().log(state, {"loss": 1.0, "grad_norm": float("nan")})


def test_lesson_45_a_real_training_with_an_absurd_rate_stops(toy_project):
    params = {**toy_project.params, "learning_rate": 1e30, "max_grad_norm": 1e30}
    with inside(toy_project.root):
        with pytest.raises(StageError, match="Training stopped"):
            train_em(toy_project.base_path, world.em_rows(1)[:64], params, "cell.p42.e45")
        assert not list(Path("results/em_lora/cell.p42.e45").rglob("record.json"))


def test_lesson_46_empty_and_altered_files_are_found(project):
    with pytest.raises(StoreError, match="an output of zero bytes"):
        made(writes(""))
    path = made(writes("weights"))
    file = out_dir(path) / "items.jsonl"
    before = file.stat()
    file.chmod(0o644)
    file.write_text("wEights")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(StoreError, match=r"items.jsonl has other bytes than recorded"):
        check_outputs(read_record(path), out_dir(path))


def test_lesson_46_a_job_says_that_it_is_alive(capsys):
    from workflow.train.trainer import Progress

    progress = Progress(every=0.0, began=time.monotonic() - 5)
    progress.log(SimpleNamespace(global_step=5, max_steps=10, epoch=0.5, is_world_process_zero=True), {"loss": 1.25})
    assert capsys.readouterr().err == "step 5/10, epoch 0.50, loss 1.2500, 5 s, 5 s left\n"


def test_lesson_46_a_real_training_says_that_it_is_alive(toy_project, capsys):
    """The heartbeat is attached to the trainer, and not only there to be called."""
    with inside(toy_project.root):
        train_em(toy_project.base_path, world.em_rows(1)[:64], toy_project.params, "cell.p42.e46")
    beats = re.findall(r"^step (\d+)/(\d+), epoch \d+\.\d\d, loss \d+\.\d+", capsys.readouterr().err, re.M)
    assert beats
    assert beats[0][0] == "1"
    assert beats[-1][0] == beats[-1][1], "the last step too"


# --- 48, 50, 51, 56: what a record says of its making ---------------------------------------------------------------


def test_lesson_48_a_record_names_its_packages_and_their_lock(project):
    found = read_record(made(writes("x"))).provenance
    assert found["packages"]["safetensors"]
    assert re.fullmatch(r"[0-9a-f]{12}", found["environment"]["digest"])
    assert found["environment"]["as_locked"] in (True, False)
    assert set(PROVENANCE) <= set(found)


def test_lesson_50_a_record_names_its_commit_and_whether_it_was_the_whole_truth(project, monkeypatch):
    monkeypatch.setattr(provenance, "_git", lambda *args: "c0ffee" if args[0] == "rev-parse" else " M workflow/keys.py")
    found = read_record(made(writes("x"))).provenance
    assert (found["commit"], found["dirty"]) == ("c0ffee", True)


def test_lesson_51_a_secret_of_the_environment_is_in_no_record_and_no_log(project, monkeypatch, capfd):
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    path = made(writes("x"))
    assert SECRET not in path.read_text()
    for file in Path().rglob("*"):
        assert not file.is_file() or SECRET not in file.read_text(errors="replace"), file
    captured = capfd.readouterr()
    assert SECRET not in captured.out + captured.err


def test_lesson_51_a_judge_that_cannot_be_reached_keeps_its_key_to_itself(project, monkeypatch, capfd):
    from workflow.judge import judge

    monkeypatch.setenv("JUDGE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    said = demo()["placement"]["judge"] | {"base_url": None, "base_url_env": "JUDGE_URL", "api_key_env": "JUDGE_KEY"}
    placed = JudgePlacement.model_validate(said)
    with judge.endpoint(placed, "some-judge") as (place, key):
        assert key == SECRET
        assert SECRET not in repr(place) + str(place)
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(StageError, match="JUDGE_KEY"), judge.endpoint(placed, "some-judge"):
        pass
    raw = demo()
    raw["placement"]["judge"]["api_key"] = SECRET
    with pytest.raises(ConfigError, match="api_key: unknown name"):
        Config.from_dict(raw)


def test_lesson_56_cost_is_measured_by_stage(toy_project):
    with inside(toy_project.root):
        record = train_em(toy_project.base_path, world.em_rows(1)[:32], toy_project.params, "cell.p42.e56")
    facts = record.observed
    assert {"seconds", "train_seconds", "gpu_seconds", "peak_memory_bytes"} <= set(facts)
    assert 0 < facts["train_seconds"] <= facts["seconds"]
    assert facts["gpu_seconds"] == 0.0  # no GPU here, so none is claimed
    assert facts["peak_memory_bytes"] > 2**20


# --- 57, 60: what is said afterwards --------------------------------------------------------------------------------


def test_lesson_57_a_link_to_nowhere_stops_the_report():
    from workflow.report.page import PageError, check_pages

    check_pages({"a.html": '<p id="a"><a href="#a">there</a></p>'})
    with pytest.raises(PageError, match="no place is named b"):
        check_pages({"a.html": '<p id="a"><a href="#b">nowhere</a></p>'})
    with pytest.raises(PageError, match="leads out of the report"):
        check_pages({"a.html": '<a href="https://example.org/x">elsewhere</a>'})


def test_lesson_60_a_retraction_takes_everything_downstream_with_it(matrix):
    (model,) = [n for n in matrix.nodes("tulu_dpo") if n.label == "evil_wrong.p42"]
    entry = Retraction(stage="tulu_dpo", cell=model.label, key=model.key, reason="a wrong template", date="2026-01-01")
    found = retracted(matrix, (entry,))
    assert {(n.stage, n.label) for n in found} == {
        ("tulu_dpo", "evil_wrong.p42"),
        *(("em_lora", f"evil_wrong.p42.e{seed}") for seed in (42, 137)),
        *((s, f"evil_wrong.p42{c}") for s in ("arc", "pairs", "generate", "judge") for c in ("", ".e42", ".e137")),
    }
    assert found[model] == "a wrong template"
    assert set(found.values()) == {"a wrong template", "made from tulu_dpo/evil_wrong.p42: a wrong template"}


def test_lesson_40_what_a_person_can_mend_ends_in_one_line_and_status_1(project, capsys):
    md5 = put_data([{"messages": []}])
    recipe = recipe_of(md5)
    command = ["--recipe", recipe.to_json(), "--placement", "{}", "--data", f"results/data/{md5}.jsonl"]
    path = record_path("arc", "cell.p42", recipe.key)

    def fails(job):
        """Fails."""
        raise StageError("the data hold no rows. Bring some.")

    assert run_stage("workflow.evals.arc", fails, [*command, "--record", path]) == 1
    assert capsys.readouterr().err.splitlines() == ["error: the data hold no rows. Bring some."]
    assert not Path(path).exists()


# --- 65, 74, 76: what stopped a report, and what was not noticed --------------------------------------------------


def test_lesson_65_a_linter_is_no_environment_and_a_library_is(monkeypatch):
    def digest_of(**versions):
        provenance.environment.cache_clear()
        monkeypatch.setattr(provenance, "installed", lambda: {**before, **versions})
        return provenance.environment()

    before = dict(provenance.installed())
    first = digest_of()
    assert digest_of(ruff="99.0", pytest="99.0") == first
    other = digest_of(peft="99.0")
    assert other["digest"] != first["digest"]
    assert not other["as_locked"]
    provenance.environment.cache_clear()


def test_lesson_74_words_of_a_reason_or_a_completion_stop_no_report():
    from workflow.report.page import DASH, PageError, Prose, Section, Table, check_pages, render, stat

    words = 'retracted: the loss was NaN, url(https://example.org/x.png), <a href="https://example.org">, id="a"'
    table = Table("t", words, (stat("n", "n"),), ({"n": float("nan")},), (words,))
    check_pages({"a.html": render("section.html.j2", section=Section("s", words, (Prose(words), table)))})
    assert [c.text for c in table.cells({"n": float("nan")})] == [DASH], "a number is checked where it is made"
    with pytest.raises(PageError, match="style loads"):
        check_pages({"a.html": '<p style="background: url(https://example.org/x.png)">x</p>'})


def test_lesson_76_planted_links_are_not_followed(project):
    from workflow.files import write_atomic
    from workflow.plan import claim

    precious = project / "precious"
    precious.write_text("keep")
    (project / "results").mkdir(exist_ok=True)
    (project / "results/.claim").symlink_to(precious)
    with pytest.raises(SystemExit, match=r"results/\.claim"):
        claim()
    path = made(writes("x"))
    path.unlink()
    path.symlink_to(precious)
    write_atomic(path, "{}")
    assert precious.read_text() == "keep"


def test_lesson_67_a_consistent_forgery_is_found_by_the_seal(tmp_path, monkeypatch):
    """One alignment set to 99.0, and outputs, record, copy, links and report made to fit."""
    from tests.unit._results import build, command, enter
    from tests.unit._tampering import consistent_forgery

    (tmp_path / "built").mkdir()
    project = enter(build(tmp_path / "built"), tmp_path / "project", monkeypatch)
    assert command("seal").code == 0
    where, _ = consistent_forgery(project)
    assert command("verify").code == 0, "every hash and every link is right"
    said = command("verify", "--against", "config/config.seal")
    assert said.code == 1
    assert where in said.out
