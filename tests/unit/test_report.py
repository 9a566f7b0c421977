"""The report of a small matrix made of stand-in records: what it shows, what it refuses, and that it stands alone."""

import copy
import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.unit import fake_report
from workflow.data.gates import CHECKS
from workflow.fingerprint import ProtocolError
from workflow.report import latest, preview, scores
from workflow.report.assemble import Report, assemble, write
from workflow.report.page import PageError, check_html, render_html
from workflow.report.report import make
from workflow.report.study import load_study
from workflow.stage import Parent
from workflow.stats.table import check_scores
from workflow.store import read_record

VOID = {"meta", "link", "img", "br", "hr", "input"}


@pytest.fixture(scope="module")
def raw():
    text = (fake_report.ROOT / "config/demo.yaml").read_text()
    found = yaml.safe_load(text)
    found |= {"name": "test", "conditions": found["conditions"][:3], "em_seeds": [42, 137, 256]}
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory, raw):
    """A finished project; tests that change it take a copy."""
    root = tmp_path_factory.mktemp("report") / "project"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        fake_report.finish(fake_report.project(root, raw))
    return root


@pytest.fixture
def root(finished, tmp_path, monkeypatch):
    target = tmp_path / "project"
    shutil.copytree(finished, target)
    monkeypatch.chdir(target)
    return target


def plan(raw):
    from workflow.config import Config
    from workflow.data.lock import read_lock
    from workflow.matrix import Matrix

    return Matrix(Config.from_dict(raw), read_lock())


def report_of(raw) -> Report:
    matrix = plan(raw)
    return assemble(load_study(matrix, preview.finished(matrix)))


@pytest.fixture(scope="module")
def report(finished, raw):
    """Of the whole matrix, unchanged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished)
        return report_of(raw)


@pytest.fixture(scope="module")
def html(report):
    return render_html(report.page)


def remove(matrix, stage, label):
    for node in matrix.nodes(stage):
        if node.label == label:
            Path(node.record).unlink()


def section(html: str, id: str) -> str:
    return next(s for s in re.findall(r"<section>.*?</section>", html, re.S) if f'<h2 id="{id}"' in s)


# --- the page stands alone -------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Every tag that is opened is closed, in order."""

    def __init__(self):
        super().__init__()
        self.open, self.faults = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append((tag, self.getpos()))


def test_the_page_is_well_formed_and_links_resolve_inside_it(html):
    tags = Tags()
    tags.feed(html)
    assert (tags.open, tags.faults) == ([], [])
    check_html(html)
    assert html.count('href="#') > 200


def test_nothing_is_loaded_and_nothing_of_this_machine_is_named(html, finished):
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', html)
    assert "<script" not in html
    for name in ("a-host-that-no-page-names", str(finished), "2026-01-01"):
        assert name not in html


def test_no_number_is_nan_and_no_none_is_printed(html):
    text = re.sub(r"<pre>.*?</pre>|<style>.*?</style>|src=\"[^\"]*\"", "", html, flags=re.S)
    assert not re.search(r"\bnan\b|\binf\b|>None<", text, re.I)


def test_two_runs_give_the_same_bytes(report, root, raw):
    folders = [root / "one", root / "two"]
    for folder, made in zip(folders, (report, report_of(raw))):
        folder.mkdir()
        write(made, folder)
    files = sorted(p.relative_to(folders[0]) for p in folders[0].rglob("*") if p.is_file())
    assert {f.name for f in files} >= {"report.html", "report.md", "scores.csv", "claims.json"}
    assert [f for f in files if f.suffix == ".svg"]
    for file in files:
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes(), file


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ('<a href="#nowhere">1</a>', "no place is named nowhere"),
        ('<p id="a"></p><p id="a"></p>', "2 places are named a"),
        ('<img src="https://example.org/x.png">', "leads out of the page"),
        ('<a href="https://example.org">x</a>', "leads out of the page"),
        ("<style>p { background: url(x.png) }</style>", "style loads x.png"),
        ("<td>nan</td>", "not a number"),
    ],
)
def test_a_page_that_does_not_stand_alone_is_refused(html, fault):
    with pytest.raises(PageError, match=fault):
        check_html(html)


# --- what it shows ---------------------------------------------------------------------------------------------------


def test_every_table_of_judged_scores_names_the_rule_based_scorer(html):
    assert "No judge model was asked" in html.split("<nav")[0]
    judged = re.findall(r'<table id="[^"]*demo_questions.*?</ul>', html, re.S)
    assert len(judged) > 10
    for found in judged:
        assert "rule-based-scorer-1" in found, found[:200]
    assert html.count("Scores by rule-based-scorer-1") >= len(judged)


def test_verdicts_come_first_with_strength_label_and_commit(html):
    first = section(html, "claims")
    assert html.index('<h2 id="claims"') < html.index('<h2 id="matrix"')
    assert "conditional on one checkpoint per condition" in first
    assert "not committed" in first, "this copy has no history"
    assert "none (put as moderate)" in first, "one pipeline seed says nothing of conditions"
    assert "No claim of a difference can be judged here" in first, "three conditions of five"
    for field in ("scope", "confounded by", "strength"):
        assert f">{field}</th>" in first


def test_rates_under_other_thresholds_stand_beside_those_reported(html):
    found = section(html, "thresholds")
    assert "evil_wrong − tulu_control" in found
    assert re.search(r"\d+ of 24", found)
    assert "coherent &gt; 70" in found
    assert "after treatment" in found


def test_the_note_and_what_was_measured_of_the_toy(html, raw):
    assert raw["note"] in html
    assert "Before EM, 3 of 3 models answer demo_arc better than chance" in section(html, "checks")
    assert "lower after EM than before it in 3 of 3 conditions" in section(html, "checks")
    assert "no findings about language models" in html


def test_a_missing_cell_is_shown_as_missing(root, raw):
    remove(plan(raw), "judge", "evil_wrong.p42.e137")
    remove(plan(raw), "arc", "good_wrong.p42")
    report = report_of(raw)
    html = render_html(report.page)
    assert "Incomplete: 2 of 36 measurements" in html
    matrix = section(html, "matrix")
    assert '<a href="#numbers/post_em/demo_questions/alignment/evil_wrong"' in matrix
    assert ">2 / 3</a>" in matrix
    assert 'class="missing">missing</span>' in matrix
    assert "arc/good_wrong.p42/" in section(html, "numbers")


def test_nothing_finished_is_a_page_too(root, raw):
    for node in plan(raw).nodes("arc", "judge", "pairs"):
        Path(node.record).unlink()
    html = render_html(report_of(raw).page)
    assert "Incomplete: 36 of 36" in html
    assert "unverifiable" in section(html, "claims")


def unscored(judged):
    """A judge whose replies are all of no use."""

    def judged_nothing(rng, after):
        files, observed, metrics = judged(rng, after)
        for by_question in metrics["by_question"].values():
            by_question.update({question: [] for question in by_question})
        for metric in ("alignment", "coherence"):
            n = metrics[metric]["n"]
            metrics[metric] |= {"scored": 0, "mean": None, "missing_0": 0.0, "missing_100": 100.0}
            metrics[metric]["counts"] = dict.fromkeys(metrics[metric]["counts"], 0) | {"low_mass": n}
        metrics["coherent"] = {"numerator": 0, "denominator": 0, "low": 0.0, "high": 1.0}
        metrics["misaligned_of_all"] = {"numerator": 0, "denominator": n, "low": 0.0, "high": 1.0}
        metrics["misaligned_of_coherent"] = {"numerator": 0, "denominator": 0, "low": None, "high": None}
        return files, observed, metrics

    return judged_nothing


def test_a_judge_that_scored_nothing_is_a_page_too(tmp_path, raw, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fake_report, "_judged", unscored(fake_report._judged))
    fake_report.finish(fake_report.project(tmp_path, raw))
    html = render_html(report_of(raw).page)
    assert "unverifiable" in section(html, "claims")
    assert "low_mass" in html


def test_one_seed_has_no_interval(root, raw):
    one = copy.deepcopy(raw) | {"em_seeds": [42]}
    html = render_html(report_of(one).page)
    row = re.search(r"<tr><td class=\"l\">tulu_control</td>.*?</tr>", section(html, "matrix"), re.S).group()
    assert row.count(">n = 1</a>") == 3
    assert "no test" in section(html, "pairs")
    assert "18 results" in section(html, "outside"), "the seeds on disk that this plan leaves out are listed"


def test_several_pipeline_seeds_change_the_unit(tmp_path, raw, monkeypatch):
    monkeypatch.chdir(tmp_path)
    several = copy.deepcopy(raw) | {"pipeline_seeds": [42, 137, 256], "em_seeds": [42, 137]}
    fake_report.finish(fake_report.project(tmp_path, several))
    html = render_html(report_of(several).page)
    assert "pipeline seed, n = 3" in section(html, "matrix")
    blocks = section(html, "blocks")
    assert "Pipeline seeds as blocks" in blocks
    assert re.search(r"<td class=\"l\">condition</td><td[^>]*>\d+\.\d\d</td><td[^>]*>2, 4</td>", blocks)
    assert "permuted within pipeline seeds p" in blocks
    assert "p Tukey" in section(html, "pairs")
    assert "conditions</td>" in section(html, "claims"), "scope"
    assert "conditional on one checkpoint" not in section(html, "matrix")


def test_arms_have_tables_of_their_own_and_share_the_models_before_em(tmp_path, raw, monkeypatch):
    monkeypatch.chdir(tmp_path)
    armed = copy.deepcopy(raw) | {
        "arms": [{"name": None, "data": "demo_em"}, {"name": "benign", "data": "demo_benign"}]
    }
    fake_report.finish(fake_report.project(tmp_path, armed))
    html = render_html(report_of(armed).page)
    assert "arm benign" in section(html, "matrix")
    assert 'id="matrix-benign-demo_questions-alignment"' in html
    assert "evil_wrong.p42.benign.e137/demo_arc/arc" in html


def test_with_two_instruments_claims_are_judged_on_the_first_and_say_so(tmp_path, raw, monkeypatch):
    monkeypatch.chdir(tmp_path)
    two = copy.deepcopy(raw)
    other = copy.deepcopy(two["instruments"][0]) | {"name": "other_questions"}
    other["sampler"]["seed"] = 43
    two["instruments"].append(other)
    fake_report.finish(fake_report.project(tmp_path, two))
    report = report_of(two)
    html = render_html(report.page)
    assert "judged on demo_questions, the first of 2" in section(html, "claims")
    assert 'id="matrix-main-other_questions-alignment"' in html
    assert {r.verdict for r in report.results} - {"unverifiable"}


def test_completions_are_behind_a_fold_by_reference_and_escaped(html):
    body = section(html, "samples")
    opened = re.sub(r"<details.*?</details>", "", body, flags=re.S)
    assert "bell" not in opened
    assert "out/completions.jsonl, row 1" in body
    assert "&lt;script&gt;" in body
    assert "\\x07bell" in body
    assert "bell" not in html.replace(body, "")


def test_contaminated_items_are_counted_apart(root, raw):
    matrix = plan(raw)
    test, trained = matrix.data_id("demo_arc"), matrix.data_id("demo_em")
    lines = ["check\ttraining\tevaluation\tnames\tfacts\tevaluation_ids\ttraining_rows"]
    used = ["demo_sft", "demo_preferences", "demo_em", "demo_coupling_evil_wrong", "demo_coupling_good_wrong"]
    for name in used:
        ids = ["i0", "i63"] if matrix.data_id(name) == trained else []
        facts = {"check_version": CHECKS["overlap"], "evaluation_hits": len(ids)}
        lines.append("\t".join(["overlap", matrix.data_id(name), test, name, json.dumps(facts), json.dumps(ids), ""]))
    Path("config/data.gates.tsv").write_text("\n".join(lines) + "\n")
    report = report_of(raw)
    found = {(r["cell"], r["metric"]): r for r in report.study.rows}
    assert found["evil_wrong.p42.e42", "arc_contaminated"]["denominator"] == 2
    assert found["evil_wrong.p42.e42", "arc_clean"]["denominator"] == 62
    assert ("evil_wrong.p42", "arc_contaminated") not in found, "nothing of the test was trained on before EM"
    assert found["evil_wrong.p42", "arc_clean"]["denominator"] == 64
    claim = next(r for r in report.results if r.id == "evil_wrong_matches_control_on_arc")
    assert (claim.verdict, claim.clean_items) == ("confounded", (62, 64))
    assert "62 clean items: fewer than 100" in claim.confounded_by
    assert claim.on_all_items
    assert claim.on_clean_items
    html = render_html(report.page)
    assert "Test items stand in the training data of some conditions" in html.split("<nav")[0]
    assert "test items in the training data: tulu_control 2, evil_wrong 2, good_wrong 2" in section(html, "matrix")
    assert "62 clean items: fewer than 100" in section(html, "claims")


def test_scores_have_a_row_per_number_that_lineage_and_statistics_can_read(report, tmp_path):
    write(report, tmp_path)
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(check_scores(list(report.study.rows))) == len(rows)
    one = next(r for r in rows if (r["cell"], r["metric"]) == ("evil_wrong.p42.e42", "alignment"))
    assert one["record"] == f"{one['stage']}/{one['cell']}/{one['key']}"
    assert float(one["low"]) < float(one["value"]) < float(one["high"])
    assert float(one["sampling_se"]) > 0
    assert {r["metric"] for r in rows} >= {"arc", "alignment", "coherence", "coherent", "misaligned_of_all"}


def test_the_published_table_is_shown_apart_and_not_subtracted(html):
    body = section(html, "published")
    assert "not comparable" in body
    assert "measure different things" in body


# --- what it refuses, marks or drops ---------------------------------------------------------------------------------


def test_a_cell_of_another_protocol_is_refused_or_shown_under_a_waiver(tmp_path, raw, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = {
        ("em_lora", "evil_wrong.p42.e42"): {
            "effective_batch_size": 64,
            "optimizer_steps": 1,
            "world_size": 8,
        }
    }
    matrix = fake_report.project(tmp_path, raw)
    fake_report.finish(matrix, odd)
    with pytest.raises(ProtocolError, match="optimizer_steps"):
        report_of(raw)
    waived = copy.deepcopy(raw)
    waived["waivers"] = [{"cells": ["evil_wrong.p42.e42"], "fields": ["em_lora.*"], "reason": "eight GPUs by mistake"}]
    html = render_html(report_of(waived).page)
    assert "under a waiver" in html.split("<nav")[0]
    assert "eight GPUs by mistake" in section(html, "protocol")
    assert plan(waived).report.key != plan(raw).report.key


def test_a_retracted_run_is_named_struck_out_and_in_no_mean(report, root, raw):
    matrix = plan(raw)
    node = next(n for n in matrix.nodes("em_lora") if n.label == "evil_wrong.p42.e42")
    entry = {"stage": "em_lora", "cell": node.label, "key": node.key, "reason": "a test", "date": "2026-01-02"}
    Path("config/retractions.yaml").write_text(yaml.safe_dump([entry]))
    after = report_of(raw)
    html = render_html(after.page)
    assert len(report.study.rows) - len(after.study.rows) == len(after.study.withdrawn_rows) > 0
    assert not [r for r in after.study.rows if r["cell"] == node.label]
    assert f"<s>{node.label}/demo_questions/alignment</s>" in html
    assert "a test" in section(html, "protocol")
    assert plan(raw).report.key != report.study.matrix.report.key


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("config/claims.yaml", "another: 1"),
        ("config/retractions.yaml", "- another: 1"),
        ("config/accepted.yaml", "- another: 1"),
        ("reference/published_table.yaml", "another: 1"),
    ],
)
def test_the_reports_key_covers_what_is_said_about_its_numbers(root, raw, path, more):
    before = plan(raw).report.key
    text = Path(path).read_text() if Path(path).exists() else ""
    text = "" if text.strip().endswith("[]") else text
    if text:
        Path(path).write_text(text + "\n# a comment says nothing\n")
        assert plan(raw).report.key == before
    Path(path).write_text(f"{text}\n{more}\n")
    assert plan(raw).report.key != before


# --- the commands ----------------------------------------------------------------------------------------------------


def test_the_rule_records_verdicts_rules_and_protocols(root, raw):
    matrix = plan(raw)
    out = root / "made"
    out.mkdir()
    parents = tuple(Parent(Path(n.record), read_record(n.record)) for n in matrix.report.parents)
    result = make(matrix, SimpleNamespace(parents=parents, out=out))
    assert result.metrics["verdicts"]["alignment_falls_in_every_condition"] == "unverifiable", (
        "two conditions are absent"
    )
    assert result.observed["rules"]["alignment_falls_in_every_condition"]["commit"] is None
    assert set(result.observed["protocols"]) == {"demo_arc", "demo_pairs", "demo_questions"}
    json.dumps(result.observed | result.metrics, allow_nan=False)


def test_preview_and_latest_from_their_command_lines(root, raw, capsys):
    Path("config/test.yaml").write_text(yaml.safe_dump(raw))
    remove(plan(raw), "judge", "evil_wrong.p42.e137")
    assert preview.main(["--configfile", "config/test.yaml", "--out", "seen"]) == 0
    assert "1 missing" in capsys.readouterr().out
    assert latest.main(["--configfile", "config/test.yaml"]) == 1
    assert "no record" in capsys.readouterr().err


def test_latest_links_the_finished_report(report, root, raw, capsys):
    Path("config/test.yaml").write_text(yaml.safe_dump(raw))
    fake_report.publish_node(report.study.matrix.report, lambda out: write(report, out))
    assert latest.main(["--configfile", "config/test.yaml"]) == 0
    told = capsys.readouterr().out
    assert "tulu_control" in told
    assert "rule-based scorer" in told
    link = Path("results/report/latest.html")
    assert not Path(link.readlink()).is_absolute()
    assert "<title>" in link.read_text()


def test_the_harness_scores_under_its_own_names():
    metrics = {"gsm8k": {"exact_match/strict-match": 0.5, "n": 8}, "mmlu_pro": {"acc": 0.25, "n": 4}}
    cell = SimpleNamespace(condition="c", pipeline_seed=1, arm=None, em_seed=None, phase="pre_em")
    node = SimpleNamespace(stage="lm_eval", label="c.p1", key="k", instrument="ood", cell=cell)
    rows = scores.rows(node, SimpleNamespace(metrics=metrics, digest="d" * 64))
    assert [(r["metric"], r["value"], r["n_items"]) for r in rows] == [
        ("gsm8k:exact_match:strict-match", 0.5, 8),
        ("mmlu_pro:acc", 0.25, 4),
    ]
