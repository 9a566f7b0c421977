"""`status`: the state of each node, the grid, and what is missing in GPU-hours."""

import json
import os
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from tests.unit._results import build, change, command, edit_record, enter, find, finish, publish
from workflow import reuse
from workflow.audit import status, status_view
from workflow.audit.cost import Facts
from workflow.audit.logs import log_path
from workflow.files import Owner
from workflow.store import heartbeat_path, read_record, read_summary

CELL = "evil_wrong.p42.e42"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture
def matrix(built, tmp_path, monkeypatch):
    return enter(built, tmp_path, monkeypatch)


def survey(matrix, stage, label):
    return status.survey(matrix).states[find(matrix, stage, label)]


def take_away(node):
    """Remove a finished result and leave what a job that fails leaves."""
    shutil.rmtree(Path(node.record).parent)


def test_a_finished_matrix_is_done(matrix):
    said = json.loads(command("status", "--json").out)
    assert said["counts"] == {"done": len(matrix.nodes())}
    assert said["cells"][CELL]["em_lora"] == "done"
    assert said["cells"][CELL]["judge:demo_questions"] == "done"
    assert said["missing"] == {"jobs": 0, "gpu_hours": 0.0, "seconds": 0.0, "unpriced": {}}
    assert said["notes"] == []


def test_missing_is_costed_from_past_records_of_the_stage(matrix):
    take_away(find(matrix, "em_lora", CELL))
    said = json.loads(command("status", "--json").out)
    assert said["cells"][CELL]["em_lora"] == "missing"
    assert said["missing"] == {"jobs": 1, "gpu_hours": 1.0, "seconds": 2.0, "unpriced": {}}


def test_the_median_is_taken_and_a_stage_without_past_records_is_named(matrix):
    nodes = matrix.nodes("em_lora")
    for node, seconds in zip(nodes[1:], (1.0, 5.0, 100.0), strict=True):
        edit_record(node.record, lambda r, s=seconds: r["observed"].update(seconds=s, gpu_seconds=s * 7200))
    take_away(nodes[0])
    take_away(find(matrix, "coupling_sft", "evil_wrong.p42"))
    found = status.survey(matrix)
    cost = found.prices.cost(found.to_compute())
    assert (cost.jobs, cost.seconds, cost.gpu_hours) == (2, 5.0, 10.0)
    assert cost.unpriced == {"coupling_sft": 1}
    assert "1 coupling_sft" in str(cost)


def test_stale_is_finished_under_another_key_only(matrix):
    old = find(matrix, "em_lora", CELL)
    now = change(lambda raw: raw["stages"]["em_lora"].update(weight_decay=0.5))
    found = survey(now, "em_lora", CELL)
    assert (found.state, found.others) == ("stale", (old.key,))
    assert survey(now, "tulu_dpo", "evil_wrong.p42").state == "done"
    assert survey(now, "judge", CELL).state == "stale"
    told = json.loads(command("status", "--json").out)["notes"]
    assert any(note.get("other_keys") == [old.key] for note in told)


def test_the_price_of_other_keys_is_used_where_the_plan_has_none(matrix):
    now = change(lambda raw: raw["stages"]["em_lora"].update(weight_decay=0.5))
    price = status.survey(now).prices.of("em_lora")
    assert (price.records, price.planned) == (4, False)
    assert "4 of other keys" in command("status").out


def test_other_code_is_told_and_accepted(matrix):
    node = find(matrix, "arc", CELL)
    edit_record(node.record, lambda r: r["provenance"].update(code_digest="000000000000"))
    found = survey(matrix, "arc", CELL)
    assert found.state == "other code"
    assert "000000000000" in found.reason
    assert status.survey(matrix).undone() == []
    said = command("accept", "arc", "--reason", "a comment in a string")
    assert "000000000000" in said.out
    assert survey(matrix, "arc", CELL).state == "done"
    assert "nothing to accept" in command("accept", "judge", "--reason", "x").out


def test_another_environment_is_told(matrix):
    edit_record(find(matrix, "arc", CELL).record, lambda r: r["provenance"]["environment"].update(digest="f" * 12))
    found = survey(matrix, "arc", CELL)
    assert found.state == "other environment"
    assert "ffffffffffff" in found.reason
    assert "eeeeeeeeeeee" in found.reason


def facts(node):
    return Facts.of(read_summary(node.record))


def test_a_record_in_another_spelling_tells_the_same(matrix):
    node = find(matrix, "arc", CELL)
    before = facts(node)
    raw = json.loads(Path(node.record).read_text())
    Path(node.record).write_text(json.dumps(raw))
    assert facts(node) == before == (2.0, 3600.0)


def test_gpu_seconds_that_no_stage_recorded_come_from_the_gpus_that_it_held(matrix):
    node = find(matrix, "arc", CELL)

    def edit(record):
        del record["observed"]["gpu_seconds"]
        record["provenance"]["gpu"] = ["NVIDIA H100", "NVIDIA H100"]

    edit_record(node.record, edit)
    assert facts(node).gpu_seconds == 4.0


def test_large_records_are_read_whole(matrix):
    node = find(matrix, "arc", CELL)
    edit_record(node.record, lambda r: r["metrics"].update(text="x" * (2 << 20)))
    assert facts(node).seconds == 2.0


def test_what_is_not_a_record_does_not_stop_the_grid(matrix):
    Path(find(matrix, "arc", CELL).record).write_text("[1, 2")
    found = survey(matrix, "arc", CELL)
    assert found.state == "outdated"
    assert "not a record of this version" in found.reason


# --- a parent that is gone or has other bytes -----------------------------------------------------------------------


def test_a_missing_parent_outdates_all_below_it_down_to_the_report(matrix):
    take_away(find(matrix, "em_lora", CELL))
    states = status.survey(matrix).states
    below = matrix.descendants(find(matrix, "em_lora", CELL))
    assert {n.stage for n in below} == {"arc", "pairs", "generate", "judge", "report"}
    assert {n for n, s in states.items() if s.state == "outdated"} == below
    assert states[find(matrix, "em_lora", CELL)].state == "missing"
    assert f"em_lora/{CELL} above it" in states[find(matrix, "generate", CELL)].reason
    assert "outdated" in command("status").out


def test_a_parent_of_other_bytes_outdates_its_children_and_theirs(matrix):
    node = find(matrix, "em_lora", CELL)
    publish(node, salt="other bytes")
    states = status.survey(matrix).states
    assert {n for n, s in states.items() if s.state == "outdated"} == matrix.descendants(node)
    arc = states[find(matrix, "arc", CELL)].reason
    assert node.record in arc
    assert "it was" in arc
    said = command("why", CELL, "arc")
    assert node.record in said.out
    assert "nothing is to be made" not in said.out
    verified = command("verify")
    assert verified.code == 1
    assert "Run `snakemake all`: what follows is restored or made again" in verified.out


# --- equal work under another name ----------------------------------------------------------------------------------


def rename(raw):
    raw["conditions"][1]["name"] = "wicked_wrong"


def remember(matrix):
    for node in matrix.nodes():
        record = read_record(node.record)
        reuse.remember(Path(node.record), record, [read_record(p.record).content for p in node.parents])


def test_a_renamed_condition_can_be_taken_over_and_gc_keeps_it(matrix):
    remember(matrix)
    now = change(rename)
    found = status.survey(now)
    renamed = [n for n in now.nodes() if n.label.startswith("wicked_wrong")]
    assert len(renamed) > 10
    assert {found.states[n].state for n in renamed} == {"can be taken over"}
    assert found.to_compute() == [now.report]
    assert "evil_wrong" in found.states[renamed[-1]].reason
    assert not [line for line in command("gc").out.splitlines() if "evil_wrong" in line and "report" not in line]


@pytest.mark.parametrize("why", ["retracted", "other code", "rerun", "redone"])
def test_what_is_not_taken_over(matrix, why):
    if why == "rerun":
        matrix = change(lambda raw: raw.update(replicates=[{"stage": "em_lora", "cell": CELL, "up_to": 2}]))
        take_away(find(matrix, "em_lora", CELL))
        finish(matrix, "em_lora")
        take_away(find(matrix, "em_lora", CELL))
        for node in matrix.nodes("em_lora"):
            if Path(node.record).exists():
                reuse.remember(
                    Path(node.record), read_record(node.record), [read_record(node.parents[0].record).content]
                )
        assert survey(matrix, "em_lora", CELL).state == "missing"
        return
    remember(matrix)
    node = find(matrix, "em_lora", CELL)
    place = f"em_lora/{CELL}/{node.key}"
    if why == "retracted":
        assert command("retract", place, "--reason", "47 steps").code == 0
    elif why == "redone":
        assert command("redo", place, "--reason", "47 steps").code == 0
    else:
        edit_record(node.record, lambda r: r["provenance"].update(code_digest="000000000000"))
    now = change(rename)
    assert survey(now, "em_lora", CELL.replace("evil", "wicked")).state == "missing"
    assert survey(now, "em_lora", "wicked_wrong.p42.e137").state == "can be taken over"


def fail(node, text):
    take_away(node)
    log = Path(log_path(node.stage, node.label, node.key))
    log.parent.mkdir(parents=True)
    log.write_text(text)
    return log


def test_failed_is_a_log_without_a_record(matrix):
    log = fail(find(matrix, "em_lora", CELL), "first\n\nerror: the loss is NaN at step 3\n")
    found = survey(matrix, "em_lora", CELL)
    assert (found.state, found.log) == ("failed", str(log))
    said = command("status")
    assert "error: the loss is NaN at step 3" in said.out
    assert str(log) in said.out


def test_a_job_at_work_is_running_and_a_killed_one_is_not(matrix):
    node = find(matrix, "em_lora", CELL)
    fail(node, "step 1\n")
    workspace = Path(node.record).with_name(f".0a.{Owner.current()}.tmp")
    workspace.mkdir(parents=True)
    assert survey(matrix, "em_lora", CELL).state == "running"
    workspace.rename(workspace.with_name(f".0a.{Owner.current()._replace(pid=999999999)}.tmp"))
    assert survey(matrix, "em_lora", CELL).state == "interrupted"


def test_a_job_of_another_host_counts_as_running(matrix):
    node = find(matrix, "em_lora", CELL)
    fail(node, "step 1\n")
    Path(node.record).with_name(".0a.gpu07.example.org.1.17.5.tmp").mkdir(parents=True)
    assert survey(matrix, "em_lora", CELL).state == "running"


def test_a_job_that_was_stopped_is_interrupted_and_not_failed(matrix):
    fail(find(matrix, "em_lora", CELL), "step 120, loss 1.5\nstopped with 143: it goes on from step 100\n")
    found = survey(matrix, "em_lora", CELL)
    assert found.state == "interrupted"
    assert "the same command goes on" in found.reason


def test_a_log_cannot_move_the_cursor(matrix):
    fail(find(matrix, "em_lora", CELL), "error: \x1b[2Jgone\x07\n")
    assert r"error: \x1b[2Jgone\x07" in command("status").out
    assert "\x1b[2J" not in command("status").out


def test_a_lost_record_over_whole_outputs_says_that_it_is_restored(matrix):
    Path(find(matrix, "em_lora", CELL).record).unlink()
    found = survey(matrix, "em_lora", CELL)
    assert found.state == "outdated"
    assert "restores it" in found.reason


def test_retracted_comes_before_everything_and_reaches_what_was_made_from_it(matrix):
    node = find(matrix, "em_lora", CELL)
    assert command("retract", f"em_lora/{CELL}/{node.key}", "--reason", "47 steps").code == 0
    said = json.loads(command("status", "--json").out)
    assert said["cells"][CELL] == dict.fromkeys(said["cells"][CELL], "retracted")
    assert said["cells"]["evil_wrong.p42.e137"]["judge:demo_questions"] == "done"
    assert "made from em_lora/evil_wrong.p42.e42: 47 steps" in command("status").out


def test_the_grid_has_a_row_for_each_condition_and_a_mark_for_each_stage(matrix):
    take_away(find(matrix, "generate", CELL))
    lines = command("status").out.splitlines()
    row = next(line for line in lines if line.startswith("evil_wrong.p42 "))
    assert row.split() == ["evil_wrong.p42", "✓✓✓✓✓✓✓✓", "✓✓✓·↓", "✓✓✓✓✓"]
    control = next(line for line in lines if line.startswith("tulu_control.p42 "))
    assert control.split() == ["tulu_control.p42", "✓✓✓✓✓✓✓", "✓✓✓✓✓", "✓✓✓✓✓"]
    assert (
        control.index("✓") == row.index("✓") + 1
    )  # the control has no coupling: its marks stand under the same stages


def test_a_narrow_terminal_gets_one_mark_per_cell_the_worst(matrix):
    take_away(find(matrix, "generate", CELL))
    fail(find(matrix, "arc", CELL), "error: no\n")
    console = Console(width=24, record=True, file=open(os.devnull, "w"), color_system=None)  # noqa: SIM115
    status_view.show(status.survey(matrix), console)
    lines = console.export_text().splitlines()
    assert "evil_wrong.p42   ✓✗✓" in lines


def test_paths_prints_the_targets_of_the_cells(matrix):
    said = command("status", "--paths", "evil_wrong.p42", CELL)
    expected = [n.record for n in matrix.nodes() if n.label in ("evil_wrong.p42", CELL)]
    assert said.out.splitlines() == expected
    assert command("status", "--paths").out.splitlines() == matrix.records()


def test_cells_limit_the_grid(matrix):
    assert list(json.loads(command("status", CELL, "--json").out)["cells"]) == [CELL]


@pytest.mark.parametrize("args", [("status", "nobody.p1"), ("status", "--paths", "nobody.p1")])
def test_an_unknown_cell_is_an_error_of_one_line(matrix, args):
    said = command(*args)
    assert said.code == 1
    assert said.err.startswith(f"error: no cell nobody.p1 in {matrix.configfile}. `matrix status`")
    assert said.err.count("\n") == 1


def test_a_missing_config_is_an_error_of_one_line(matrix):
    said = command("status", "--configfile", "config/none.yaml")
    assert said.code == 1
    assert len(said.err.splitlines()) == 1
    assert "config/none.yaml" in said.err


@pytest.mark.parametrize(("age", "state"), [(0, "running"), (3600, "interrupted")])
@pytest.mark.parametrize("field", ["host", "namespace"])
def test_a_job_elsewhere_runs_as_long_as_its_heartbeat(matrix, field, age, state):
    node = find(matrix, "judge", CELL)
    folder = Path(node.record).parent
    shutil.rmtree(folder)
    other = Owner.current()._replace(**{field: "gpu07.example.org" if field == "host" else 1})
    temp = folder / f".0a.{other}.tmp"
    temp.mkdir(parents=True)
    beat = heartbeat_path(temp)
    beat.touch()
    os.utime(beat, (beat.stat().st_mtime - age,) * 2)
    log = Path(f"logs/judge/{CELL}/{node.key}.log")
    log.parent.mkdir(parents=True)
    log.write_text("asked 3 of 10\n")
    assert status.survey(matrix).states[node].state == state


def test_judgments_of_which_many_have_no_score_are_named(matrix, capsys):
    node = find(matrix, "judge", CELL)
    count = {"numerator": 12, "denominator": 160, "share": 0.075, "by_kind": {"refusal": 12}, "flagged": True}
    edit_record(node.record, lambda r: r["observed"].update(unscored=count))
    other = find(matrix, "judge", "evil_wrong.p42")
    edit_record(other.record, lambda r: r["observed"].update(unscored=count | {"flagged": False}))
    assert json.loads(command("status", "--json").out)["unscored"] == {str(Path(node.record).parent): count}
    status_view.show(status.survey(matrix))
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("without a score")]
    assert told == [f"without a score: 8% of judge/{CELL}/{node.key} (refusal 12)"]
