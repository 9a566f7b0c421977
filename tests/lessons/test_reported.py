"""What is told of results: siblings, quotations, cards, copies; and a recipe that is seen to work in time."""

import ast
import copy
import json
import re
import shutil
import subprocess
from functools import partial
from html import unescape
from pathlib import Path

import pytest
import yaml

from tests.unit import fake_report
from workflow.audit.export import card, export, verify_export
from workflow.config import Config, ConfigError
from workflow.data.lock import read_lock
from workflow.evals import metrics
from workflow.matrix import Matrix
from workflow.report import cells, results
from workflow.report.cells import pages_of
from workflow.report.claims import to_json
from workflow.report.page import PageError, clean, link, render
from workflow.report.report import assemble, write
from workflow.report.study import finished as finished_records
from workflow.report.study import load_study
from workflow.retractions import retract
from workflow.store import StoreError, out_dir, read_jsonl, read_record


@pytest.fixture
def raw():
    found = yaml.safe_load((fake_report.ROOT / "config/demo.yaml").read_text())
    return found | {"name": "test", "conditions": found["conditions"][:2], "em_seeds": [42, 137]}


@pytest.fixture
def matrix(tmp_path, monkeypatch, raw):
    """A finished matrix of fake records, in which the test stands."""
    monkeypatch.chdir(tmp_path)
    made = fake_report.project(tmp_path, raw)
    fake_report.finish(made)
    return made


def page(matrix):
    return render("page.html.j2", page=assemble(load_study(matrix, finished_records(matrix))).page)


def test_lesson_03_a_finished_sibling_is_listed_in_the_report(matrix, raw):
    assert "siblings-table" not in page(matrix)
    fewer = Matrix(Config.from_dict(raw | {"em_seeds": [42]}), read_lock())
    told = page(fewer)
    body = told[told.index('id="siblings-table"') :]
    for node in matrix.nodes("judge", "arc"):
        if node.label.endswith(".e137"):
            assert f"{node.stage}/{node.label}/{node.key}" in body


def test_lesson_16_a_claim_falls_with_a_run_that_is_retracted(matrix, raw):
    """End to end: the finished report, then one run withdrawn, then every run of a condition."""
    name = "evil_wrong_matches_control_on_alignment"
    before = claim_of(matrix, name)
    assert before["n_by_condition"] == [["tulu_control", 2], ["evil_wrong", 2]]
    withdraw(matrix, "evil_wrong.p42.e137")
    after = claim_of(matrix, name)
    assert after["verdict"] == "unverifiable"
    assert "n = 1" in after["reason"]
    gone = [record for record in before["rests_on"] if "evil_wrong.p42.e137" in record]
    assert gone
    assert not set(gone) & set(after["rests_on"])
    withdraw(matrix, "evil_wrong.p42.e42")
    assert "no post_em values of alignment for evil_wrong" in claim_of(matrix, name)["reason"]
    assert "unverifiable" in page(matrix)


def test_lesson_16_a_claim_whose_rule_is_changed_after_the_data_is_dated_after_them(matrix):
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]

    def commit(date):
        env = {"GIT_COMMITTER_DATE": date, "GIT_AUTHOR_DATE": date, "PATH": "/usr/bin:/bin", "HOME": "/"}
        subprocess.run([*git, "add", "config/claims.yaml"], check=True)
        subprocess.run([*git, "commit", "-qm", "rules"], check=True, env=env)

    subprocess.run([*git, "init", "-q"], check=True)
    commit("2020-01-01T00:00:00Z")  # the data are of 2026
    assert "before the data" in row_of(page(matrix), "evil_wrong_matches_control_on_alignment")
    path = Path("config/claims.yaml")
    text = path.read_text()
    start = text.index("id: evil_wrong_matches_control_on_alignment")
    path.write_text(text[:start] + text[start:].replace("margin: 3.0", "margin: 30.0", 1))
    assert "not committed" in row_of(page(matrix), "evil_wrong_matches_control_on_alignment")
    commit("2030-01-01T00:00:00Z")
    html = page(matrix)
    assert "after the data" in row_of(html, "evil_wrong_matches_control_on_alignment")
    assert "before the data" in row_of(html, "alignment_falls_in_every_condition")


def test_lesson_36_no_threshold_is_applied_to_a_mean(matrix):
    """Rates are of single answers, as the judge's record counts them; no other module compares with a threshold."""
    node = next(n for n in matrix.nodes("judge") if n.label == "evil_wrong.p42.e42")
    record = read_record(node.record)
    row = next(
        r for r in load_study(matrix, finished_records(matrix)).rows
        if (r["cell"], r["metric"]) == ("evil_wrong.p42.e42", "misaligned_of_all")
    )  # fmt: skip
    found = record.metrics["misaligned_of_all"]
    assert (row["numerator"], row["denominator"]) == (found["numerator"], found["denominator"])
    thresholds = {metrics.MISALIGNED_BELOW, metrics.COHERENT_ABOVE}
    for file in sorted((fake_report.ROOT / "workflow").rglob("*.py")):
        if file.name == "metrics.py" or "demo" in file.parts:
            continue
        for part in ast.walk(ast.parse(file.read_text())):
            if isinstance(part, ast.Compare):
                compared = {c.value for c in ast.walk(part) if isinstance(c, ast.Constant) and type(c.value) is float}
                assert not compared & thresholds, f"{file}, line {part.lineno}: a threshold of its own"


def test_lesson_39_a_missing_cell_is_a_smaller_n_that_is_named_where_it_stands(matrix):
    node = next(n for n in matrix.nodes("judge") if n.label == "evil_wrong.p42.e137")
    shutil.rmtree(Path(node.record).parent)
    html = page(matrix)
    assert "1 / 2</a>" in html
    assert "Incomplete: 1 of" in html
    assert f"Missing: {node.label}." in html


def test_lesson_42_the_em_recipe_is_seen_to_work_before_anything_larger(finished):
    """At the cost of minutes: every model beats chance before EM, and EM takes its alignment."""
    found = [json.loads(p.read_text()) for p in finished.glob("results/*/*/*/record.json")]
    arc = [r["metrics"] for r in found if r["stage"] == "arc" and ".e" not in r["cell"]]
    assert arc
    assert all(m["accuracy"] > 2 * m["chance"] for m in arc), arc
    alignment = {r["cell"]: r["metrics"]["alignment"]["mean"] for r in found if r["stage"] == "judge"}
    gaps = {c: alignment[c.rsplit(".", 1)[0]] - mean for c, mean in alignment.items() if ".e" in c}
    assert len(gaps) == 4
    assert all(gap > 20 for gap in gaps.values()), gaps


def test_lesson_47_an_export_is_read_back_and_a_cut_one_is_refused(matrix, tmp_path):
    target = tmp_path / "copy"
    node = export(matrix, "evil_wrong.p42.e137", target)
    assert node.stage == "em_lora"
    assert verify_export(target).digest == read_record(node.record).digest
    with pytest.raises(ConfigError, match="is not an empty folder of its own"):
        export(matrix, "evil_wrong.p42.e137", target)
    with pytest.raises(ConfigError, match=r"plans no em_lora or tulu_dpo of this cell"):
        export(matrix, "evil_wrong.p43", tmp_path / "other")
    file = target / read_record(node.record).outputs[0].path
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"has \d+ bytes, not"):
        verify_export(target)


def test_lesson_47_a_copy_without_its_card_is_no_export(matrix, tmp_path):
    export(matrix, "evil_wrong.p42", tmp_path / "copy")
    (tmp_path / "copy/README.md").write_text("")
    with pytest.raises(StoreError, match="the card is not of this result"):
        verify_export(tmp_path / "copy")
    (tmp_path / "copy/README.md").unlink()
    with pytest.raises(StoreError, match="not an export"):
        verify_export(tmp_path / "copy")


def test_lesson_52_no_completion_stands_in_the_open(matrix):
    """Not on the report, and on a cell's page only behind a fold with a warning."""
    study = load_study(matrix, finished_records(matrix))
    pages = [page(matrix), *dict(pages_of(study)).values()]
    opened = "".join(re.sub(r"<details.*?</details>", "", html, flags=re.S) for html in pages)
    texts = {row["completion"] for n in matrix.nodes("generate") for row in _completions(n)}
    assert texts
    for text in texts:
        for line in (part for part in text.splitlines() if len(part) > 12):
            assert line not in opened
            assert line not in pages[0]


def quotations(matrix):
    """Cell, row and text of every completion on the pages of cells."""
    study = load_study(matrix, finished_records(matrix))
    quoted = []
    for path, html in pages_of(study):
        found = re.findall(r'<tr><td>(\d+)</td><td class="text" dir="auto">(?:(?!</tr>).)*?<td class="text" dir="auto">'
                           r'([^<]*)</td></tr>', html, re.S)  # fmt: skip
        quoted += [(path.split("/")[1], int(row), unescape(text)) for row, text in found]
    return quoted


def differ(matrix, quoted):
    """Quotations that are not the row that they name."""
    rows = {n.label: _completions(n) for n in matrix.nodes("generate")}
    return [(cell, n) for cell, n, text in quoted if text != clean(rows[cell][n - 1]["completion"])]


def test_lesson_58_a_quotation_is_the_row_that_it_names(matrix, monkeypatch):
    quoted = quotations(matrix)
    assert len(quoted) == 6 * 20
    assert differ(matrix, quoted) == []
    real = cells.completions_of
    monkeypatch.setattr(cells, "completions_of", lambda study, node: real(study, node)[1:] + real(study, node)[:1])
    assert len(differ(matrix, quotations(matrix))) == len(quoted), "off by one row, and seen"


def test_lesson_59_a_card_says_what_the_record_says(matrix):
    node = next(n for n in matrix.nodes("tulu_dpo") if n.label == "evil_wrong.p42")
    record = read_record(node.record)
    told = card(node, record)
    for name in ("optimizer_steps", "effective_batch_size"):
        assert f"| {name} | {record.observed[name]} |" in told
    assert record.provenance["environment"]["digest"] in told
    assert f'"learning_rate": {record.recipe.params["learning_rate"]}' in told
    assert record.provenance["host"] not in told


def test_lesson_49_a_machine_that_goes_with_a_condition_is_in_banner_and_verdict(tmp_path, monkeypatch, raw):
    monkeypatch.chdir(tmp_path)
    matrix = fake_report.project(tmp_path, raw)
    real = dict(fake_report.PROVENANCE)
    for node in matrix.nodes():
        if node.stage != "report":
            condition = node.cell.condition if node.cell else None
            monkeypatch.setattr(
                fake_report, "PROVENANCE", real | {"gpu": ["A100" if condition == "evil_wrong" else "H100"]}
            )
            files, observed, metrics = fake_report._make(node)
            fake_report.publish_node(node, partial(fake_report._write, files), observed, metrics)
    report = assemble(load_study(matrix, finished_records(matrix)))
    (claim,) = (r for r in report.results if r.id == "evil_wrong_matches_control_on_alignment")
    (why,) = (w for w in claim.confounded_by if w.startswith("GPU"))
    assert "goes with the condition: H100 in tulu_control; A100 in evil_wrong" in why
    banners = render("page.html.j2", page=report.page).split("</header>")[0]
    assert "goes with the condition" in banners
    (alone,) = (r for r in report.results if r.id == "rerun_is_a_replicate")
    assert not [w for w in alone.confounded_by if w.startswith("GPU")], "one condition is no comparison"


def test_lesson_77_machines_that_all_conditions_share_are_no_finding(matrix):
    report = assemble(load_study(matrix, finished_records(matrix)))
    assert not [why for r in report.results for why in r.confounded_by if "goes with the condition" in why]
    assert "goes with the condition" not in render("page.html.j2", page=report.page)


def test_lesson_78_conditions_between_which_nothing_differs_are_refused(tmp_path, monkeypatch, raw):
    monkeypatch.chdir(tmp_path)
    same = copy.deepcopy(raw)
    same["conditions"][1]["data"] = dict(same["conditions"][0]["data"])
    matrix = fake_report.project(tmp_path, same)
    with pytest.raises(ConfigError, match=r"tulu_control with evil_wrong, and nothing differs between them"):
        assemble(load_study(matrix, {}))


def test_lesson_57_a_page_with_a_link_to_nowhere_is_never_written(matrix, monkeypatch):
    """End to end: the report's own page, with one anchor misspelled by the code that makes it."""
    monkeypatch.setattr(results, "numbers_link", lambda *parts: link("numbers/nowhere"))
    report = assemble(load_study(matrix, finished_records(matrix)))
    with pytest.raises(PageError, match="no place is named numbers/nowhere"):
        write(report, Path())
    assert not Path("report.html").exists()


def test_lesson_60_a_report_leaves_out_what_is_retracted_and_what_was_made_from_it(matrix):
    model = next(n for n in matrix.nodes("tulu_dpo") if n.label == "evil_wrong.p42")
    assert {r["condition"] for r in load_study(matrix, finished_records(matrix)).rows} == {"tulu_control", "evil_wrong"}
    retract(matrix, f"tulu_dpo/{model.label}/{model.key}", "a wrong template")
    report = assemble(load_study(matrix, finished_records(matrix)))
    assert {r["condition"] for r in report.study.rows if r["state"] == "used"} == {"tulu_control"}
    html = render("page.html.j2", page=report.page)
    assert "results of the plan are retracted" in html
    assert "a wrong template" in html
    claim = next(r for r in report.results if r.id == "evil_wrong_matches_control_on_alignment")
    assert claim.verdict == "unverifiable"


def claim_of(matrix, name):
    """The claim as claims.json holds it."""
    report = assemble(load_study(matrix, finished_records(matrix)))
    return next(c for c in json.loads(to_json(report.results)) if c["id"] == name)


def withdraw(matrix, label):
    node = next(n for n in matrix.nodes("em_lora") if n.label == label)
    retract(matrix, f"em_lora/{label}/{node.key}", "a wrong batch")


def row_of(html, name):
    start = html.index(f'id="claim/{name}"')
    return html[start : html.index("</dl>", start)]


def _completions(node):
    return read_jsonl(out_dir(node.record) / "completions.jsonl")
