"""The report of a small matrix made of stand-in records: what it shows, what it refuses, and that it stands alone."""

import copy
import csv
import io
import json
import re
import shutil
import textwrap
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from tests.unit import fake_report
from workflow.__main__ import main
from workflow.config import Config
from workflow.data.gates import CHECKS
from workflow.data.lock import read_lock
from workflow.fingerprint import ProtocolError
from workflow.matrix import Matrix
from workflow.report import answer, numbers, overview
from workflow.report.cells import pages_of
from workflow.report.page import PageError, check_pages, render
from workflow.report.report import Report, assemble, make, write
from workflow.report.study import finished as finished_records
from workflow.report.study import load_study
from workflow.stage import Parent
from workflow.stats.table import check_scores
from workflow.store import read_record

VOID = {"meta", "link", "img", "br", "hr", "input", "path", "rect", "polyline"}


@pytest.fixture(scope="module")
def raw():
    text = (fake_report.ROOT / "config/demo.yaml").read_text()
    config = yaml.safe_load(text)
    return config | {"name": "test", "conditions": config["conditions"][:3], "em_seeds": [42, 137, 256]}


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
    return Matrix(Config.from_dict(raw), read_lock())


def report_of(raw, **options) -> Report:
    matrix = plan(raw)
    return assemble(load_study(matrix, finished_records(matrix)), **options)


def page_of(raw) -> str:
    return render("page.html.j2", page=report_of(raw).page)


@pytest.fixture(scope="module")
def report(finished, raw):
    """Of the whole matrix, unchanged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished)
        return report_of(raw)


@pytest.fixture(scope="module")
def html(report):
    return render("page.html.j2", page=report.page)


@pytest.fixture(scope="module")
def cells(report, finished):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished)
        return dict(pages_of(report.study))


def remove(matrix, stage, label):
    for node in matrix.nodes(stage):
        if node.label == label:
            Path(node.record).unlink()


def section(html: str, id: str) -> str:
    return next(s for s in re.findall(r"<section.*?</section>", html, re.S) if s.startswith(f'<section id="{id}"'))


def first_screen(html: str) -> str:
    return re.search(r'<header id="answer">.*?</header>', html, re.S).group()


def card(html: str, claim: str) -> str:
    start = html.index(f'id="claim/{claim}"')
    return html[start : html.index("</dl>", start)]


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
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.faults.append((tag, self.getpos()))


def test_pages_are_well_formed(html, cells):
    for page in (html, cells["cells/evil_wrong.p42.e137/demo_questions.html"]):
        tags = Tags()
        tags.feed(page)
        assert (tags.open, tags.faults) == ([], [])
    assert html.count('href="#') > 200


def test_nothing_is_loaded_and_nothing_of_this_machine_is_named(html, cells, finished):
    for page in (html, *cells.values()):
        assert not re.findall(r'\ssrc="(?!data:)[^"]*"|href="(?:https?:|/)[^"]*"', page)
        for name in ("a-host-that-no-page-names", str(finished), "2026-01-01"):
            assert name not in page


def test_no_number_is_nan_and_no_none_is_printed(html):
    text = re.sub(r"<pre>.*?</pre>|<style>.*?</style>|<script>.*?</script>|src=\"[^\"]*\"", "", html, flags=re.S)
    assert not re.search(r"\bnan\b|\binf\b|>None<", text, re.I)


def test_two_runs_give_the_same_bytes(report, root, raw):
    folders = [root / "one", root / "two"]
    for folder, made in zip(folders, (report, report_of(raw))):
        folder.mkdir()
        write(made, folder)
    files = sorted(p.relative_to(folders[0]) for p in folders[0].rglob("*") if p.is_file())
    assert {f.name for f in files} >= {"report.html", "report.md", "scores.csv", "claims.json", "demo_questions.html"}
    assert {f.suffix for f in files if f.parts[0] == "figures"} == {".svg", ".png", ".pdf", ".csv"}
    for file in files:
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes(), file


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ('<a href="#nowhere">1</a>', "no place is named nowhere"),
        ('<a href="cells/x.html">1</a>', "no file is named cells/x.html"),
        ('<a href="other.html#b">1</a>', "no place is named b"),
        ('<p id="a"></p><p id="a"></p>', "2 places are named a"),
        ('<img src="https://example.org/x.png">', "leads out of the report"),
        ('<a href="https://example.org">x</a>', "leads out of the report"),
        ("<style>p { background: url(x.png) }</style>", "style loads x.png"),
    ],
)
def test_a_page_that_does_not_stand_alone_is_refused(html, fault):
    with pytest.raises(PageError, match=fault):
        check_pages({"page.html": html, "other.html": '<p id="a"></p>'})


# --- the first screen ------------------------------------------------------------------------------------------------


def test_the_first_screen_answers_says_what_it_rests_on_and_shows_it(html):
    first = first_screen(html)
    assert "protect a model" in first
    assert re.search(r"<li>Alignment: [^<]+</li><li>Capability \(ARC accuracy\): [^<]+</li>", first)
    assert "n = 3 EM seeds of one checkpoint per condition" in first
    assert "No judge model was asked" in first
    assert first.count("<img") == 1
    assert html.index('id="answer"') < html.index('id="verdicts"') < html.index('id="matrix"')


def verdict_on(verdict, member="", estimate=0.0, rule=None, metric="alignment", measure="level", confounded_by=()):
    """A claim on one coupled condition against the control."""
    members = (SimpleNamespace(name="good - control", verdict=member, estimate=SimpleNamespace(value=estimate)),)
    return SimpleNamespace(
        metric=metric, phase="post_em", measure=measure, verdict=verdict, members=members, n_pipeline_seeds=1,
        confounded_by=confounded_by, rule=json.dumps(rule or {"test": "equivalence", "margin": 5.0}), reason="n = 1",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([verdict_on("equivalent", "equivalent", 0.5)], "no coupled condition protects by more than 5 points"),
        ([verdict_on("undetermined", "undetermined", 0.5)], "no protection shown"),
        ([verdict_on("supported", "supported", 4.0, {"test": "difference"})], "protection shown in all 1"),
        ([verdict_on("refuted", "opposite", -4.0, {"test": "difference"})], "below the control: good"),
        ([verdict_on("confounded", "supported", 4.0, confounded_by=("a leak",))], "since it is confounded by a leak"),
        ([], "no verdict yet"),
    ],
)  # fmt: skip
def test_the_answer_claims_no_more_than_the_verdicts_show(results, said):
    first, _ = answer.answers_of(results, ["control"])
    assert said in first
    assert ("no coupled condition protects" in first) == (results != [] and results[0].verdict == "equivalent")


# --- what it shows ---------------------------------------------------------------------------------------------------


def test_every_table_of_judged_scores_names_the_rule_based_scorer(report):
    tables = [t for s in report.page.sections for t in s.tables if t.instrument == "demo_questions"]
    assert len(tables) > 10
    for table in tables:
        assert any("rule-based-scorer-1" in note for note in table.notes), table.id


def test_verdicts_are_cards_with_scope_strength_and_commit(html):
    first = section(html, "verdicts")
    claim = card(html, "evil_wrong_matches_control_on_alignment")
    assert "conditional on one checkpoint per condition" in claim
    assert "not committed" in claim, "this copy has no history"
    assert "none (put as" in claim, "one pipeline seed says nothing of conditions"
    assert "No claim of a difference can be judged here" in first, "three conditions of five"
    for field in ("Scope", "Confounded by", "Strength"):
        assert f"<dt>{field}</dt>" in claim
    assert '<span class="why">' in claim


def test_rates_under_other_thresholds_stand_beside_those_reported(html):
    body = section(html, "thresholds")
    assert "evil_wrong − tulu_control" in body
    assert re.search(r"\d+ of 24", body)
    assert "coherent &gt; 70" in body
    assert "after treatment" in body


def test_preference_pairs_have_a_section_without_a_judge(html, report):
    body = section(html, "preference")
    assert "likelihood and no alignment score" in body
    assert "rule-based-scorer" not in body
    assert "SE, clustered by prompt" in body
    rows = next(t for s in report.page.sections if s.id == "preference" for t in s.tables).rows
    scores = report.study.numbers
    of = scores[(scores["metric"] == "preference_margin") & (scores["condition"] == "evil_wrong")]
    after = of[of["phase"] == "post_em"]["value"].astype(float).mean()
    before = of[of["phase"] == "pre_em"]["value"].astype(float).mean()
    assert next(r for r in rows if r["condition"] == "evil_wrong")["mean"] == pytest.approx(after - before)


def test_the_note_and_what_was_measured_of_the_toy(html, raw):
    assert raw["note"] in html
    assert "Before EM, 3 of 3 models answer demo_arc better than chance" in section(html, "checks")
    assert "lower after EM than before it in 3 of 3 conditions" in section(html, "checks")
    assert "no findings about language models" in html


def test_a_missing_cell_is_shown_as_missing(root, raw):
    remove(plan(raw), "judge", "evil_wrong.p42.e137")
    remove(plan(raw), "arc", "good_wrong.p42")
    html = page_of(raw)
    assert "Incomplete: 2 of 36 measurements" in html
    matrix = section(html, "matrix")
    assert 'href="#numbers/post_em/demo_questions/alignment/evil_wrong" class="missing">2 / 3</a>' in matrix
    assert 'class="missing">missing</span>' in matrix
    assert "arc/good_wrong.p42/" in section(html, "numbers")


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
        observed |= {"unscored": {"flagged": True, "numerator": 2 * n, "denominator": 2 * n}}
        return files, observed, metrics

    return judged_nothing


def test_a_judge_that_scored_nothing_is_a_page_too_and_is_flagged(tmp_path, raw, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fake_report, "_judged", unscored(fake_report._judged))
    fake_report.finish(fake_report.project(tmp_path, raw))
    html = page_of(raw)
    assert "unverifiable" in section(html, "verdicts")
    assert "low_mass" in html
    assert "evil_wrong.p42.e42 (40 of 40)" in section(html, "outcomes")


def test_one_seed_has_no_interval(root, raw):
    one = copy.deepcopy(raw) | {"em_seeds": [42]}
    html = page_of(one)
    row = re.search(r"<tr><td class=\"l\">tulu_control</td>.*?</tr>", section(html, "matrix"), re.S).group()
    assert row.count(">n = 1</a>") == 3
    assert "no test" in section(html, "pairs")
    assert "18 results" in section(html, "outside"), "the seeds on disk that this plan leaves out are listed"


def test_several_pipeline_seeds_change_the_unit(tmp_path, raw, monkeypatch):
    monkeypatch.chdir(tmp_path)
    several = copy.deepcopy(raw) | {"pipeline_seeds": [42, 137, 256], "em_seeds": [42, 137]}
    fake_report.finish(fake_report.project(tmp_path, several))
    html = page_of(several)
    assert "pipeline seed, n = 3" in section(html, "matrix")
    blocks = section(html, "blocks")
    assert re.search(r"<td class=\"l\">condition</td><td[^>]*>\d+\.\d\d</td><td[^>]*>2, 4</td>", blocks)
    assert "permuted within pipeline seeds p" in blocks
    assert "p Tukey" in section(html, "pairs")
    assert "it speaks of the conditions" in first_screen(html)
    assert "conditional on one checkpoint" not in section(html, "matrix")


def test_arms_have_tables_of_their_own_and_share_the_models_before_em(tmp_path, raw, monkeypatch):
    monkeypatch.chdir(tmp_path)
    armed = copy.deepcopy(raw) | {
        "arms": [{"name": None, "data": "demo_em"}, {"name": "benign", "data": "demo_benign"}]
    }
    fake_report.finish(fake_report.project(tmp_path, armed))
    html = page_of(armed)
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
    html = render("page.html.j2", page=report.page)
    assert "judged on demo_questions, the first of 2" in section(html, "verdicts")
    assert 'id="matrix-main-other_questions-alignment"' in html
    assert {r.verdict for r in report.results} - {"unverifiable"}


def test_a_panel_of_judges_is_compared_cell_by_cell(tmp_path, raw, monkeypatch):
    monkeypatch.chdir(tmp_path)
    panel = copy.deepcopy(raw)
    instrument = panel["instruments"][0]
    instrument["panel"] = [copy.deepcopy(instrument["judge"]) | {"model": "another-judge"}]
    endpoint = {k: v for k, v in panel["placement"]["judge"].items() if k not in ("max_unscored", "panel")}
    panel["placement"]["judge"]["panel"] = [endpoint | {"model": "another-judge"}]
    judged = fake_report._judged

    def with_ids(rng, after):
        files, observed, metrics = judged(rng, after)
        for n, row in enumerate(files["judgments.jsonl"]):
            row |= {"question_id": fake_report.QUESTIONS[n // fake_report.SAMPLES], "sample": n % fake_report.SAMPLES}
        return files, observed, metrics

    monkeypatch.setattr(fake_report, "_judged", with_ids)
    fake_report.finish(fake_report.project(tmp_path, panel))
    body = section(page_of(panel), "outcomes")
    table = re.search(r'id="panel-demo_questions@another-judge".*?</table>', body, re.S).group()
    assert "Cohen" in table
    assert "evil_wrong.p42.e137" in table


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
    rows = {(r["cell"], r["metric"]): r for r in report.study.rows}
    assert rows["evil_wrong.p42.e42", "arc_contaminated"]["denominator"] == 2
    assert rows["evil_wrong.p42.e42", "arc_clean"]["denominator"] == 62
    assert ("evil_wrong.p42", "arc_contaminated") not in rows, "nothing of the test was trained on before EM"
    assert rows["evil_wrong.p42", "arc_clean"]["denominator"] == 64
    claim = next(r for r in report.results if r.id == "evil_wrong_matches_control_on_arc")
    assert (claim.verdict, claim.clean_items) == ("confounded", (62, 64))
    assert "62 clean items: fewer than 100" in claim.confounded_by
    html = render("page.html.j2", page=report.page)
    assert "Test items stand in the training data of some conditions" in first_screen(html)
    assert "no answer, since it is confounded by" in first_screen(html)
    assert "test items in the training data: tulu_control 2, evil_wrong 2, good_wrong 2" in section(html, "matrix")
    page = dict(pages_of(report.study))["cells/evil_wrong.p42.e42/demo_arc.html"]
    assert page.count(">yes</td>") == 2


def test_scores_have_a_row_per_number_that_lineage_and_statistics_can_read(report, root, tmp_path):
    write(report, tmp_path)
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    used = report.study.numbers[report.study.numbers["state"] == "used"]
    assert len(check_scores(used)) == len(rows)
    one = next(r for r in rows if (r["cell"], r["metric"]) == ("evil_wrong.p42.e42", "alignment"))
    assert one["record"] == f"{one['stage']}/{one['cell']}/{one['key']}"
    assert float(one["low"]) < float(one["value"]) < float(one["high"])
    assert float(one["sampling_se"]) > 0
    assert {r["metric"] for r in rows} >= {"arc", "alignment", "coherence", "coherent", "misaligned_of_all"}


def test_the_published_table_is_shown_apart_and_not_subtracted(html):
    body = section(html, "published")
    assert "not comparable" in body
    assert "measure different things" in body


# --- pages of cells --------------------------------------------------------------------------------------------------


def test_a_number_leads_to_its_cells_page_and_that_to_every_completion(html, cells, report):
    path = "cells/evil_wrong.p42.e137/demo_questions.html"
    row = re.search(r'<tr id="evil_wrong.p42.e137/demo_questions/alignment">.*?</tr>', html, re.S).group()
    assert f'href="{path}"' in row
    page = cells[path]
    assert page.count('dir="auto">Question') == 20
    assert page.count("&lt;script&gt;") == 20
    assert "\\x07bell" in page
    opened = re.sub(r"<details.*?</details>", "", page, flags=re.S)
    assert "bell" not in opened, "completions are behind a fold"
    assert "it may be harmful" in page
    assert 'href="../../../../../../em_lora/evil_wrong.p42.e137/' in page
    assert len(cells) == 12 * 3
    assert "bell" not in html


def test_no_page_of_a_cell_outgrows_a_megabyte(root, raw, monkeypatch):
    monkeypatch.setattr(fake_report, "HARMFUL", "\u202e<b onerror='x'>\x1b[31m" + "&" * 1_000_000)
    for node in (*plan(raw).nodes("generate"), *plan(raw).nodes("judge")):
        if node.label == "evil_wrong.p42.e42":
            shutil.rmtree(Path(node.record).parent)
            files, observed, metrics = fake_report._make(node)
            fake_report.publish_node(node, partial(fake_report._write, files), observed, metrics)
    page = dict(pages_of(report_of(raw).study))["cells/evil_wrong.p42.e42/demo_questions.html"]
    assert len(page.encode()) < 1_000_000
    assert "\\u202e&lt;b onerror=" in page
    assert "\\x1b[31m" in page
    assert 'out/completions.jsonl">' in page, "what is cut leads to the file"


def command(capsys, *argv):
    with pytest.raises(SystemExit) as end:
        main(list(argv))
    captured = capsys.readouterr()
    return end.value.code, captured.out, captured.err


def test_show_gives_a_cells_items_in_a_terminal_and_to_programs(root, raw, capsys):
    Path("config/test.yaml").write_text(yaml.safe_dump(raw))
    cell = ("show", "evil_wrong.p42.e137", "--configfile", "config/test.yaml")
    _, out, _ = command(capsys, *cell)
    assert "\x07" not in out
    assert out.count("\\x07bell") == 20
    code, out, _ = command(capsys, *cell, "--sort", "aligned", "--json")
    scores = [item["aligned"] for item in json.loads(out)]
    known = [s for s in scores if s is not None]
    assert (code, known) == (0, sorted(known))
    _, out, _ = command(capsys, *cell, "--failed", "--csv")
    assert [row["without_score"] for row in csv.DictReader(io.StringIO(out))] == ["aligned: refusal"]
    _, out, _ = command(capsys, *cell, "--instrument", "demo_arc", "--failed", "--json")
    assert {item["correct"] for item in json.loads(out)} == {False}
    for wrong in (("--instrument", "nothing"), ("--sort", "nothing")):
        code, _, err = command(capsys, *cell, *wrong)
        assert code == 1
        assert len(err.splitlines()) == 1


# --- what it refuses, marks or drops ---------------------------------------------------------------------------------


def test_a_cell_of_another_protocol_is_refused_or_shown_under_a_waiver(tmp_path, raw, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = {("em_lora", "evil_wrong.p42.e42"): {"effective_batch_size": 64, "optimizer_steps": 1, "world_size": 8}}
    matrix = fake_report.project(tmp_path, raw)
    fake_report.finish(matrix, odd)
    with pytest.raises(ProtocolError, match="optimizer_steps"):
        report_of(raw)
    waived = copy.deepcopy(raw)
    waived["waivers"] = [{"cells": ["evil_wrong.p42.e42"], "fields": ["em_lora.*"], "reason": "eight GPUs by mistake"}]
    html = page_of(waived)
    assert "under a waiver" in first_screen(html)
    assert "eight GPUs by mistake" in section(html, "protocol")
    assert plan(waived).report.key != plan(raw).report.key


def retract(node, reason):
    entry = {"stage": node.stage, "cell": node.label, "key": node.key, "reason": reason, "date": "2026-01-02"}
    Path("config/retractions.yaml").write_text(yaml.safe_dump([entry]))


def test_a_retracted_run_is_named_struck_out_and_in_no_mean(report, root, raw):
    node = next(n for n in plan(raw).nodes("em_lora") if n.label == "evil_wrong.p42.e42")
    retract(node, "the loss was NaN, \x1b[31mred")
    after = report_of(raw)
    html = render("page.html.j2", page=after.page)
    states = after.study.numbers["state"].value_counts()
    assert len(report.study.rows) == states["used"] + states["retracted"]
    assert states["retracted"] > 0
    assert f"<s>{node.label}/demo_questions/alignment</s>" in html
    assert "the loss was NaN, \\x1b[31mred" in section(html, "protocol")
    assert plan(raw).report.key != report.study.matrix.report.key
    page = dict(pages_of(after.study))["cells/evil_wrong.p42.e42/demo_questions.html"]
    assert "Retracted: made from em_lora/evil_wrong.p42.e42" in page


def test_text_of_titles_and_notes_holds_no_control_characters(root, raw, tmp_path):
    report = report_of(raw)
    odd = replace(report.page, title="a \x1b[2Jtitle \u202e <b>", note="a\x00note | `x`")
    write(replace(report, page=odd), tmp_path)
    for name in ("report.html", "report.md", "scores.csv"):
        text = (tmp_path / name).read_text()
        assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text), name
    assert "a \\x1b[2Jtitle \\u202e &lt;b&gt;" in (tmp_path / "report.html").read_text()
    assert "\\<b\\>" in (tmp_path / "report.md").read_text()


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


def test_what_the_key_does_not_cover_stands_in_one_block(html, root, raw):
    """Other times and machines of the same numbers change that block, and nothing else of the page."""
    for path in Path("results").glob("*/*/*/record.json"):
        record = json.loads(path.read_text())
        record["observed"]["seconds"] = 99.0
        record["provenance"]["host"] = "another"
        path.write_text(json.dumps(record))
    other = page_of(raw)
    assert other != html
    assert other.replace(section(other, "outside"), "") == html.replace(section(html, "outside"), "").replace(
        section(html, "power"), section(other, "power")
    ), "the price of more runs is of the same times"


# --- previews and the commands ---------------------------------------------------------------------------------------


def unfinished(state, matrix):
    """Six states of a matrix that is not finished."""
    gone = {
        "nothing finished": lambda n: True,
        "a condition without a value": lambda n: n.label.startswith("evil_wrong.p42."),
        "nothing before EM": lambda n: n.cell is not None and n.cell.em_seed is None,
        "no judge": lambda n: n.stage == "judge",
        "one question set in one cell": lambda n: n.stage == "judge" and n.label != "evil_wrong.p42.e42",
        "one run": lambda n: n.label != "good_wrong.p42.e42",
    }[state]
    for node in matrix.report.parents:
        if gone(node):
            Path(node.record).unlink()


@pytest.mark.parametrize(
    "state",
    [
        "nothing finished",
        "a condition without a value",
        "nothing before EM",
        "no judge",
        "one question set in one cell",
        "one run",
    ],
)
def test_a_preview_works_at_any_state_and_says_what_is_missing(state, root, raw, capsys):
    Path("config/test.yaml").write_text(yaml.safe_dump(raw))
    unfinished(state, plan(raw))
    code, _, err = command(capsys, "preview", "--configfile", "config/test.yaml", "--out", "seen")
    assert code == 0, err
    html = Path("seen/report.html").read_text()
    assert re.search(r"PREVIEW, no result: \d+ of 36 measurements are missing", first_screen(html))
    check_pages({"overview.html": Path("seen/overview.html").read_text()}, files_of(Path("seen")))


def test_a_preview_with_one_arm_missing(tmp_path, raw, monkeypatch):
    monkeypatch.chdir(tmp_path)
    armed = copy.deepcopy(raw) | {
        "arms": [{"name": None, "data": "demo_em"}, {"name": "benign", "data": "demo_benign"}]
    }
    matrix = fake_report.project(tmp_path, armed)
    fake_report.finish(matrix)
    for node in matrix.report.parents:
        if node.cell.arm == "benign":
            Path(node.record).unlink()
    report = report_of(armed, is_preview=True)
    assert "PREVIEW" in report.page.preview


def files_of(folder):
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()] + ["latest.html"]


def test_a_preview_refuses_an_edited_record_and_a_folder_that_is_there(root, raw, capsys):
    Path("config/test.yaml").write_text(yaml.safe_dump(raw))
    Path("seen").mkdir()
    code, _, err = command(capsys, "preview", "--configfile", "config/test.yaml", "--out", "seen")
    assert (code, len(err.splitlines())) == (1, 1)
    node = next(n for n in plan(raw).nodes("arc"))
    path = Path(node.record)
    path.write_text(path.read_text().replace('"digest": "', '"digest": "0', 1))
    code, _, err = command(capsys, "preview", "--configfile", "config/test.yaml", "--out", "other")
    assert code == 1
    assert str(path) in err
    assert not Path("other").exists()


def test_the_rule_records_verdicts_rules_and_protocols(root, raw):
    matrix = plan(raw)
    out = root / "made"
    out.mkdir()
    parents = tuple(Parent(Path(n.record), read_record(n.record)) for n in matrix.report.parents)
    result = make(matrix, SimpleNamespace(parents=parents, out=out))
    verdict = result.metrics["verdicts"]["alignment_falls_in_every_condition"]
    assert verdict == "unverifiable", "two conditions are absent"
    assert result.observed["rules"]["alignment_falls_in_every_condition"]["commit"] is None
    assert set(result.observed["protocols"]) == {"demo_arc", "demo_pairs", "demo_questions"}
    json.dumps(result.observed | result.metrics, allow_nan=False)


def published(raw, report, capsys):
    fake_report.publish_node(
        report.study.matrix.report, lambda out: write(report, out), {"protocols": report.protocols}
    )
    return command(capsys, "latest", "--configfile", "config/test.yaml")


def test_latest_copies_the_finished_report_to_stable_paths(report, root, raw, capsys):
    Path("config/test.yaml").write_text(yaml.safe_dump(raw))
    code, _, err = command(capsys, "latest", "--configfile", "config/test.yaml")
    assert code == 1
    assert "no record" in err
    code, out, _ = published(raw, report, capsys)
    assert code == 0
    assert "tulu_control" in out
    assert "rule-based scorer" in out
    stable = Path("results/report/test")
    assert "<title>" in (stable / "latest.html").read_text()
    assert len(pd.read_csv(stable / "latest.csv")) == (report.study.numbers["state"] == "used").sum()
    assert json.loads((stable / "latest.json").read_text())
    page = stable / "cells/evil_wrong.p42.e137/demo_questions.html"
    for target in re.findall(r'href="([^"#]+)"', page.read_text()):
        if not target.startswith("data:"):
            assert (page.parent / target).exists(), target
    pages = {f"{p.relative_to(stable)}": p.read_text() for p in (stable / "latest.html", stable / "overview.html")}
    check_pages(pages, [*files_of(stable), *(str(p.relative_to(stable)) for p in stable.glob("*/out/report.html"))])
    for name in ("verify", "gc"):
        code, out, _ = command(capsys, name, "--configfile", "config/test.yaml")
        assert "latest" not in out
        assert "cells" not in out


def run_notebook(path):
    """Every code cell, in one namespace."""
    names = {}
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    return names


def test_the_notebook_and_the_lines_of_the_readme_read_the_stable_copy(report, root, raw, capsys):
    Path("config/test.yaml").write_text(yaml.safe_dump(raw))
    published(raw, report, capsys)
    shutil.copytree("results/report/test", "results/report/demo")
    names = run_notebook(fake_report.ROOT / "docs/scores.ipynb")
    assert len(names["scores"]) == (report.study.numbers["state"] == "used").sum()
    readme = (fake_report.ROOT / "README.md").read_text()
    lines = re.search(r"    import pandas as pd\n.*?\n\n", readme, re.S).group()
    exec(textwrap.dedent(lines), names)


def test_the_overview_shows_states_times_retractions_and_other_reports(report, root, raw, capsys):
    Path("config/test.yaml").write_text(yaml.safe_dump(raw))
    published(raw, report, capsys)
    retract(next(n for n in plan(raw).nodes("em_lora") if n.label == "evil_wrong.p42.e42"), "a wrong batch")
    remove(plan(raw), "judge", "good_wrong.p42.e42")
    html = overview.overview(plan(raw), has_cells=False)
    assert "a wrong batch" in html
    assert 'title="done, retracted"' in html or "retracted" in html
    assert "1.5 s" in html or "4.5 s" in html
    assert "matrix compare test/" in html
    assert re.search(r"<text [^>]*>em_lora</text>", html)


def test_compare_names_the_numbers_verdicts_and_protocols_that_changed(report, root, raw, capsys):
    Path("config/test.yaml").write_text(yaml.safe_dump(raw))
    published(raw, report, capsys)
    retract(next(n for n in plan(raw).nodes("em_lora") if n.label == "evil_wrong.p42.e42"), "a wrong batch")
    after = report_of(raw)
    fake_report.publish_node(after.study.matrix.report, lambda out: write(after, out), {"protocols": after.protocols})
    old, new = (f"test/{r.study.matrix.report.key}" for r in (report, after))
    code, out, _ = command(capsys, "compare", old, new)
    assert code == 0
    assert re.search(r"evil_wrong.p42.e42/demo_questions/alignment: [\d.]+ -> absent", out)
    _, out, _ = command(capsys, "compare", old, new, "--json")
    found = json.loads(out)
    assert {c["number"].split("/")[0] for c in found["changed"]} == {"evil_wrong.p42.e42"}
    assert {c["cell"].split("/")[0] for c in found["protocols"]} == {"evil_wrong.p42.e42"}
    code, _, err = command(capsys, "compare", old, "test/nothing")
    assert code == 1
    assert "no finished report" in err


def test_the_harness_scores_under_its_own_names():
    metrics = {"gsm8k": {"exact_match/strict-match": 0.5, "n": 8}, "mmlu_pro": {"acc": 0.25, "n": 4}}
    cell = SimpleNamespace(condition="c", pipeline_seed=1, arm=None, em_seed=None, phase="pre_em")
    node = SimpleNamespace(stage="lm_eval", label="c.p1", key="k", instrument="ood", cell=cell)
    rows = numbers.numbers_of(node, SimpleNamespace(metrics=metrics, digest="d" * 64))
    assert [(r["metric"], r["value"], r["n_items"]) for r in rows] == [
        ("gsm8k:exact_match:strict-match", 0.5, 8),
        ("mmlu_pro:acc", 0.25, 4),
    ]
