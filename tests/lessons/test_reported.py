"""What is told of results: siblings, quotations, cards, copies; and a recipe that is seen to work in time."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.unit import fake_report
from workflow.audit.export import card, export, verify_export
from workflow.config import Config, ConfigError
from workflow.data.lock import read_lock
from workflow.matrix import Matrix
from workflow.report import preview
from workflow.report.assemble import assemble
from workflow.report.page import render_html
from workflow.report.study import load_study
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
    return render_html(assemble(load_study(matrix, preview.finished(matrix))).page)


def test_lesson_03_a_finished_sibling_is_listed_in_the_report(matrix, raw):
    assert "siblings-table" not in page(matrix)
    fewer = Matrix(Config.from_dict(raw | {"em_seeds": [42]}), read_lock())
    told = page(fewer)
    body = told[told.index('id="siblings-table"') :]
    for node in matrix.nodes("judge", "arc"):
        if node.label.endswith(".e137"):
            assert f"{node.stage}/{node.label}/{node.key}" in body


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
    with pytest.raises(ConfigError, match="is not empty"):
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
    html = page(matrix)
    opened = re.sub(r"<details.*?</details>", "", html, flags=re.S)
    texts = {row["completion"] for n in matrix.nodes("generate") for row in _completions(n)}
    assert texts
    for text in texts:
        for line in (part for part in text.splitlines() if len(part) > 12):
            assert line not in opened


def test_lesson_58_a_quotation_names_the_row_that_it_is(matrix):
    html = page(matrix)
    quoted = re.findall(r"(generate/[\w.]+/[\w-]+)/out/completions\.jsonl, row (\d+)", html)
    assert quoted
    for place, row in quoted:
        folder = Path("results", place, "out/completions.jsonl")
        assert 1 <= int(row) <= len(read_jsonl(folder))


def test_lesson_59_a_card_says_what_the_record_says(matrix):
    node = next(n for n in matrix.nodes("tulu_dpo") if n.label == "evil_wrong.p42")
    record = read_record(node.record)
    told = card(node, record)
    for name in ("optimizer_steps", "effective_batch_size"):
        assert f"| {name} | {record.observed[name]} |" in told
    assert record.provenance["environment"]["digest"] in told
    assert f'"learning_rate": {record.recipe.params["learning_rate"]}' in told
    assert record.provenance["host"] not in told


def _completions(node):
    return read_jsonl(out_dir(node.record) / "completions.jsonl")
