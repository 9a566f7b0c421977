"""`gc` shows and removes what nothing names, and nothing else; `adopt` brings foreign numbers in as unverifiable."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tests.unit._results import CONFIG, ROOT, build, change, command, enter, find, finish, publish
from workflow.__main__ import app
from workflow.audit import garbage
from workflow.audit.adopt import ADOPTED, FOUND
from workflow.audit.status import survey
from workflow.files import Owner
from workflow.plan import Plan
from workflow.store import heartbeat_path, list_files, read_record, restore, set_aside

CELL = "evil_wrong.p42.e42"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture
def matrix(built, tmp_path, monkeypatch):
    return enter(built, tmp_path, monkeypatch)


def old_times(path):
    os.utime(path, (0, 0))


def listed(said):
    return [line.split(" MB  ")[1].split("  (")[0] for line in said.out.splitlines() if " MB  " in line]


def test_a_whole_project_has_no_waste(matrix):
    said = command("gc")
    assert said.code == 0
    assert said.out == "0 to remove, 0.000 MB\n"


def test_results_of_other_keys_are_shown_first_and_removed_on_demand(matrix):
    old = matrix.nodes("judge", "report")
    now = change(lambda raw: raw["instruments"][0]["judge"].update(max_tokens=17))
    finish(now)
    said = command("gc")
    assert sorted(listed(said)) == sorted(os.path.dirname(n.record) for n in old)
    assert "nothing was removed; say --yes" in said.out
    assert all(Path(n.record).exists() for n in old)
    assert command("gc", "--yes").code == 0
    assert not any(Path(n.record).exists() for n in old)
    assert all(Path(n.record).exists() for n in now.nodes())
    assert command("verify").code == 0
    assert command("gc").out == "0 to remove, 0.000 MB\n"


def test_superseded_results_dead_workspaces_and_half_written_files_go(matrix):
    node = find(matrix, "em_lora", CELL)
    folder = Path(node.record).parent
    set_aside(folder / "out")
    publish(node)
    dead = folder / f".0a.{Owner.current()._replace(pid=999999999)}.tmp"
    dead.mkdir()
    (dead / "model").write_text("x")
    part = folder / ".record.17.part"
    part.write_text("{")
    state = folder / "checkpoint"
    state.mkdir()
    for path in (part, state):
        old_times(path)
    found = listed(command("gc", "--yes"))
    assert {Path(p).name.split(".")[0] or Path(p).name for p in found} == {
        "superseded",
        dead.name,
        part.name,
        "checkpoint",
    }
    assert sorted(os.listdir(folder)) == ["out", "record.json"]
    assert command("verify").code == 0


def test_work_in_progress_stays(matrix):
    node = find(matrix, "judge", CELL)
    shutil.rmtree(Path(node.record).parent)
    folder = Path(node.record).parent
    live = folder / f".0a.{Owner.current()}.tmp"
    live.mkdir(parents=True)
    (folder / "journal.jsonl").write_text("{}\n")
    (folder / ".record.17.part").write_text("{")  # of this moment
    elsewhere = folder / ".0a.gpu07.1.17.5.tmp"
    elsewhere.mkdir()
    stranger = Path("results/judge", CELL, "00000000-000000000000")
    (stranger / ".0a.gpu07.1.18.5.tmp").mkdir(parents=True)
    said = command("gc", "--yes")
    assert listed(said) == []
    assert live.exists()
    assert elsewhere.exists()
    assert stranger.exists()
    assert said.out.count("held back: ") == 2


def test_data_that_nobody_names_go_and_what_the_lock_names_stays(matrix):
    nobody = Path("results/data/00000000000000000000000000000000.jsonl")
    for path in (nobody, nobody.with_suffix(".json")):
        path.write_text("{}\n")
    change(lambda raw: raw["data"].pop(next(i for i, d in enumerate(raw["data"]) if d["name"] == "demo_benign")))
    assert listed(command("gc", "--yes")) == [str(nobody.with_suffix(".json")), str(nobody)]
    assert not nobody.exists()
    assert command("verify").code == 0


def test_empty_folders_go_with_the_last_result(matrix):
    change(lambda raw: raw.update(em_seeds=[42]))
    assert command("gc", "--yes").code == 0
    assert not Path("results/em_lora/evil_wrong.p42.e137").exists()
    assert Path("results/em_lora", CELL).exists()


def test_links_are_not_followed(matrix, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "precious").write_text("x")
    Path("results/report/latest.html").symlink_to(outside / "precious")
    waste = Path("results/judge", CELL, "00000000-000000000000")
    waste.mkdir()
    (waste / "link").symlink_to(outside)
    assert listed(command("gc", "--yes")) == [str(waste)]
    assert (outside / "precious").exists()
    assert not waste.exists()


@pytest.mark.parametrize("level", ["stage", "cell", "key", "data"])
def test_what_lies_behind_a_link_is_not_touched_at_any_level(matrix, tmp_path_factory, level):
    outside = tmp_path_factory.mktemp("outside")
    key = outside / "judge/cell.p1/00000000-000000000000"
    key.mkdir(parents=True)
    (key / "superseded.1").mkdir()
    (key / ".0a.tmp.part").write_text("x")
    (outside / ".half.part").write_text("x")
    old_times(outside / ".half.part")
    old_times(key / ".0a.tmp.part")
    before = list_files(outside)
    links = {"stage": "results/old_stage", "cell": "results/judge/cell.p1", "data": "results/data"}
    targets = {"stage": outside / "judge", "cell": key.parent, "key": key, "data": outside}
    link = Path(links.get(level, f"results/judge/{CELL}/{key.name}"))
    if level == "data":
        link.rename("moved")
    link.symlink_to(targets[level])
    said = command("gc", "--yes")
    assert said.code == 0
    assert link.is_symlink()
    assert list_files(outside) == before
    assert not [p for p in listed(said) if str(p).startswith(str(link))]


def test_results_may_be_a_link_to_a_scratch_disk(matrix, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch") / "results"
    shutil.move("results", scratch)
    Path("results").symlink_to(scratch)
    waste = Path("results/judge", CELL, "00000000-000000000000")
    waste.mkdir()
    assert command("verify").code == 0
    assert listed(command("gc", "--yes")) == [str(waste)]
    assert not waste.exists()
    assert command("verify").code == 0


def run_plan(configfile):
    """What a run leaves in the results before its first job."""
    raw = yaml.safe_load(Path(configfile).read_text())
    plan = Plan.of(raw, [configfile], is_main=False)
    plan.write_plan()
    return plan.matrix


def test_two_clones_on_one_results_folder_keep_each_others_results(matrix, tmp_path_factory, monkeypatch):
    clone = tmp_path_factory.mktemp("clone")
    shutil.copytree("config", clone / "config")
    (clone / "results").symlink_to(Path("results").resolve())
    here = Path.cwd()
    monkeypatch.chdir(clone)
    change(lambda raw: raw["instruments"][0]["judge"].update(max_tokens=17))
    theirs = run_plan(CONFIG)
    finish(theirs)
    monkeypatch.chdir(here)
    said = command("gc", "--yes")
    assert said.code == 0
    assert listed(said) == []
    assert f"planned by {clone}/config/config.yaml" in said.out
    assert all(Path(n.record).exists() for n in theirs.nodes())
    monkeypatch.chdir(clone)
    run_plan(CONFIG)
    assert listed(command("gc", "--yes")) != []  # nobody has run the first plan, so nothing names its results
    monkeypatch.chdir(here)
    assert len(listed(command("gc", "--alone"))) > 0


def test_an_odd_plan_of_another_clone_stops_nothing(matrix):
    plans = Path("results/.plan")
    plans.mkdir()
    for number, text in enumerate(("", "[]", "{}", '{"records": 1}', '{"records": [1], "data": [{}], "config": null}')):
        (plans / f"{number}.json").write_text(text)
    (plans / "link.json").symlink_to("/dev/zero")
    assert command("gc").out == "0 to remove, 0.000 MB\n"


def test_nothing_is_removed_while_another_run_holds_the_results(matrix):
    code = "import sys; from workflow.plan import claim; claim(); print('held', flush=True); sys.stdin.read()"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command_line = [sys.executable, "-c", code]
    run = subprocess.Popen(command_line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    assert run.stdout.readline() == "held\n"
    waste = Path("results/judge", CELL, "00000000-000000000000")
    waste.mkdir()
    assert command("gc").code == 0
    assert command("gc", "--yes").code == 1
    assert waste.exists()
    run.communicate("")
    assert command("gc", "--yes").code == 0
    assert command("gc", "--yes").code == 0
    assert not waste.exists()


@pytest.mark.parametrize("field", ["host", "namespace"])
@pytest.mark.parametrize("moves", [True, False])
def test_a_workspace_elsewhere_goes_when_its_heartbeat_stays_still(matrix, monkeypatch, field, moves):
    other = Owner.current()._replace(**{field: "gpu07.example.org" if field == "host" else 1})
    temp = Path("results/judge", CELL, "00000000-000000000000", f".0a.{other}.tmp")
    temp.mkdir(parents=True)
    beat = heartbeat_path(temp)
    beat.touch()
    old_times(beat)  # by a clock that is off, or because it stopped

    def wait(seconds):
        assert seconds > 30
        if moves:
            os.utime(beat, (60, 60))

    monkeypatch.setattr(time, "sleep", wait)
    command("gc", "--yes")
    assert temp.exists() is moves


def test_the_heartbeat_of_a_killed_job_goes_with_its_workspace(matrix):
    folder = Path(find(matrix, "em_lora", CELL).record).parent
    dead = folder / f".0a.{Owner.current()._replace(pid=999999999)}.tmp"
    dead.mkdir()
    heartbeat_path(dead).touch()
    (folder / ".0b.other.beat").touch()
    assert command("gc", "--yes").code == 0
    assert sorted(os.listdir(folder)) == ["out", "record.json"]


def another_config(edit):
    """A second experiment in config/, on the same results."""
    text = Path(CONFIG).read_text()
    change(edit)
    Path("config/other.yaml").write_text(Path(CONFIG).read_text())
    Path(CONFIG).write_text(text)


def test_what_another_config_plans_stays(matrix):
    another_config(lambda raw: raw["instruments"][0]["judge"].update(max_tokens=17))
    other = garbage.other_plans(matrix, {})[1]
    assert [d.path for d in other] == ["config/other.yaml"]  # without pins it cannot be planned
    said = command("gc", "--configfile", "config/other.yaml")
    assert listed(said) == []
    said = command("gc", "--alone", "--configfile", "config/other.yaml")
    assert len(listed(said)) == len(matrix.nodes("judge", "report"))


def test_what_may_belong_to_a_config_that_cannot_be_planned_is_held_back(matrix):
    def edit(raw):
        raw["data"].append({**next(d for d in raw["data"] if d["name"] == "demo_em"), "name": "unpinned", "seed": 7})
        raw["arms"].append({"name": "more", "data": "unpinned"})

    another_config(edit)
    lock = Path("config/data.lock.tsv")
    lock.write_text("".join(x for x in lock.read_text().splitlines(True) if not x.startswith("unpinned\t")))
    change(lambda raw: raw["instruments"][0]["judge"].update(max_tokens=17))
    said = command("gc", "--yes")
    assert [p for p in listed(said) if "/data/" not in p] == []
    assert "may belong to config/other.yaml, which cannot be planned here" in said.out
    assert len(listed(command("gc", "--alone"))) >= len(matrix.nodes("judge", "report"))


def test_what_rests_on_data_that_the_other_config_does_not_use_is_not_held_back(matrix):
    Path("config/other.yaml").write_text(Path(CONFIG).read_text())
    change(lambda raw: raw["em_seeds"].append(256))
    text = Path("config/other.yaml").read_text()
    text = text.replace("demo_questions", "other_questions").replace("seed: 1", "seed: 2")
    Path("config/other.yaml").write_text(text.replace("demo_em", "other_em"))
    change(lambda raw: raw["instruments"][0]["judge"].update(max_tokens=17))
    found = listed(command("gc"))
    assert {p.split("/")[1] for p in found} >= {"judge"}


def test_what_was_made_from_another_model_is_not_held_back(matrix):
    raw = yaml.safe_load(Path(CONFIG).read_text())
    raw["base_model"] = {"kind": "hub", "name": "a_model", "repo": "somebody/a-model"}
    Path("config/other.yaml").write_text(yaml.safe_dump(raw))
    change(lambda raw: raw["instruments"][0]["judge"].update(max_tokens=17))
    assert len(listed(command("gc"))) == len(matrix.nodes("judge", "report"))


# --- adopt ----------------------------------------------------------------------------------------------------------

SEEDS = [42, 137, 256]
METRICS = {"arc_c": [0.7, 0.75, 0.8], "alignment": [24.0, 26.0, 28.0], "coherence": [56.0, 57.0, 58.0]}
MEANS = {"arc_c": 0.75, "alignment": 26.0, "coherence": 57.0}


def stated(values=True):
    return {m: {"mean": MEANS[m], "std": 1.0, **({"values": v} if values else {})} for m, v in METRICS.items()}


SHAPES = {
    "flat": {"condition": "a", "seeds": SEEDS, **stated()},
    "by_seed": {
        "condition": "b",
        "seeds": SEEDS,
        **{m: {"mean": MEANS[m], "values": dict(zip(map(str, SEEDS), v, strict=True))} for m, v in METRICS.items()},
    },
    "rows": {
        "condition": "c",
        "per_seed": [{"seed": s, **{m: v[i] for m, v in METRICS.items()}} for i, s in enumerate(SEEDS)],
        "summary": stated(values=False),
    },
    "nested": {
        "condition": "d",
        "seeds": SEEDS,
        "training_config": {"lora_r": 32},
        "metrics": {{"arc_c": "arc_challenge_logprob"}.get(m, m): s for m, s in stated().items()},
    },
    "summary": {
        "condition": "e",
        "pre_em": {"arc_c": 0.8, "alignment": 90.0, "coherence": 94.0},
        "post_em": {"arc_c": 0.7, "alignment": 25.0, "coherence": 59.0},
        "em_training": {"lora_r": 32, "lr": 1e-4},
    },
}


def drifted(folder, **files):
    folder.mkdir()
    for name, raw in files.items():
        (folder / f"{name}.json").write_text(json.dumps(raw))
    return folder


def adopted(tmp_path, **files):
    said = command("adopt", str(drifted(tmp_path / "original", **files)))
    assert said.code == 0, said.err
    return json.loads(Path(ADOPTED, "original", FOUND).read_text())["files"]


@pytest.mark.parametrize("name", ["flat", "by_seed", "rows", "nested"])
def test_every_shape_gives_the_same_values(matrix, tmp_path, name):
    found = adopted(tmp_path, **{name: SHAPES[name]})[f"{name}.json"]
    assert found["values"] == {m: dict(zip(map(str, SEEDS), v, strict=True)) for m, v in METRICS.items()}
    assert {"num_gpus", "em_training.steps"} <= set(found["missing"])
    assert ("em_training.lora_r" in found["missing"]) == (name != "nested")
    assert found["disagrees"] == []


def test_a_summary_without_its_protocol_lacks_exactly_two_fields(matrix, tmp_path):
    found = adopted(tmp_path, summary=SHAPES["summary"])["summary.json"]
    assert found["missing"] == ["num_gpus", "em_training.steps"]
    assert found["values"]["alignment"] == {"pre_em": 90.0, "post_em": 25.0}


def test_verify_calls_each_unverifiable_and_names_what_it_lacks(matrix, tmp_path):
    adopted(tmp_path, **SHAPES)
    said = command("verify")
    assert said.code == 2
    lines = [line for line in said.out.splitlines() if line.startswith("unverifiable: results/adopted/original/")]
    assert len(lines) == len(SHAPES)
    assert any(
        line.endswith("summary.json: adopted without a record; missing num_gpus, em_training.steps") for line in lines
    )


def test_what_was_adopted_cannot_be_changed_unseen(matrix, tmp_path):
    adopted(tmp_path, **SHAPES)
    folder = Path(ADOPTED, "original")
    (folder / "flat.json").write_text(json.dumps({**SHAPES["flat"], "condition": "z"}))
    (folder / "rows.json").unlink()
    (folder / "more.json").write_text("{}")
    said = command("verify")
    assert said.code == 1
    told = [line.split(": ", 2)[1:] for line in said.out.splitlines() if line.startswith("broken: ")]
    assert told == [
        [f"{folder}/flat.json", "has other bytes than when it was adopted"],
        [f"{folder}/rows.json", "is missing"],
        [f"{folder}/more.json", "an extra file: it was not adopted"],
    ]


def test_missing_values_metrics_and_wrong_means_are_told(matrix, tmp_path):
    raw = {"condition": "a", "seeds": [*SEEDS, 512], "alignment": {"mean": 99.0, "values": METRICS["alignment"]}}
    found = adopted(tmp_path, odd=raw)["odd.json"]
    assert found["missing"][:3] == ["alignment of 512", "arc_c", "coherence"]
    assert found["disagrees"] == ["alignment: says mean 99.0, its values have 26"]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "no .json files to adopt"),
        ({"a": {"condition": "x"}}, "none of the known shapes"),
        ({"a": [1, 2]}, "none of the known shapes"),
    ],
)
def test_what_is_not_known_is_refused_whole(matrix, tmp_path, files, told):
    said = command("adopt", str(drifted(tmp_path / "original", **files)))
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert told in said.err
    assert not Path(ADOPTED, "original").exists()


def test_a_name_is_taken_once(matrix, tmp_path):
    adopted(tmp_path, flat=SHAPES["flat"])
    assert "is there already" in command("adopt", str(tmp_path / "original")).err
    assert command("adopt", str(tmp_path / "original"), "--name", "again").code == 0


def test_gc_leaves_what_was_adopted(matrix, tmp_path):
    adopted(tmp_path, **SHAPES)
    before = list_files(Path(ADOPTED))
    command("gc", "--yes")
    assert list_files(Path(ADOPTED)) == before


# --- every command --------------------------------------------------------------------------------------------------

COMMANDS = ("status", "why", "diff", "verify", "lineage", "retract", "gc", "adopt")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name):
    said = CliRunner().invoke(app, [name, "--help"])
    assert said.exit_code == 0
    assert f"matrix {name}" in " ".join(said.output.split())
    assert "--configfile" in said.output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_with_one_line_if_the_config_is_not_there(matrix, name):
    args = {"why": ["a"], "diff": ["a", "b"], "lineage": ["a"], "retract": ["a", "--reason", "b"], "adopt": ["."]}
    said = command(name, *args.get(name, []), "--configfile", "config/none.yaml")
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert said.err.startswith("error: config/none.yaml")


@pytest.mark.parametrize("name", ["why", "diff", "lineage", "retract", "adopt"])
def test_a_missing_argument_is_a_usage_error(matrix, name):
    assert command(name).code == 2


def test_checkpoints_of_a_finished_training_settle_first(matrix):
    node = find(matrix, "em_lora", CELL)
    state = Path(node.record).with_name("checkpoint")
    state.mkdir()
    assert listed(command("gc")) == []
    old_times(state)
    assert listed(command("gc")) == [str(state)]


def test_redo_sets_aside_what_would_bring_a_result_back(matrix):
    node = find(matrix, "judge", CELL)
    inputs = read_record(node.record).inputs
    folder = Path(node.record).parent
    (folder / "journal.jsonl").write_text("{}\n")
    place = f"judge/{CELL}/{node.key}"
    assert command("redo", place, "--reason", " ").err.startswith("error: --reason")
    said = command("redo", place, "--reason", "the judge said hello")
    assert said.code == 0
    assert "set aside" in said.out
    assert not Path(node.record).exists()
    assert not (folder / "out").exists()
    assert not (folder / "journal.jsonl").exists()
    (aside,) = [p for p in folder.glob("redone.*") if p.is_dir()]
    assert (aside / "judgments.jsonl").exists()
    assert "the judge said hello" in aside.with_name(f"{aside.name}.json").read_text()
    assert restore(Path(node.record), inputs) is None
    states = survey(matrix).states
    assert states[node].state == "missing"
    assert states[matrix.report].state == "outdated"
    assert command("redo", place, "--reason", "again").err.startswith(f"error: {place}: there is no result")
    assert command("verify").code == 2  # the report's parent is away; nothing is broken


def test_redo_and_retract_compose(matrix):
    node = find(matrix, "em_lora", CELL)
    place = f"em_lora/{CELL}/{node.key}"
    assert command("retract", place, "--reason", "47 steps").code == 0
    assert command("redo", place, "--reason", "47 steps").code == 0
    assert survey(matrix).states[node].state == "retracted"


@pytest.mark.parametrize("place", ["em_lora", "a/b/c", "em_lora/../x", "em_lora/x/26b52cac-c7f970ccc757"])
def test_redo_of_what_is_not_there_is_a_line(matrix, place):
    said = command("redo", place, "--reason", "x")
    assert said.code == 1
    assert len(said.err.splitlines()) == 1
