"""The reference report: from reference/ alone, with the retracted run struck out beside both replications."""

import re

import pytest

from tests.unit.fake_report import ROOT
from workflow.report import overview


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert "23 claims" in overview.reference(out)
    return out


@pytest.fixture(scope="module")
def html(made):
    return (made / "report.html").read_text()


def test_the_page_stands_alone(html):
    assert "http" not in re.sub(r"<p>.*?</p>|<li>.*?</li>|<td.*?</td>", "", html, flags=re.S)
    assert not re.search(r"\bnan\b", re.sub(r'src="[^"]*"', "", html), re.I)


def test_the_retracted_run_is_struck_out_beside_both_replications(html):
    rows = re.search(r'id="retracted-run">.*?</table>', html, re.S).group()
    assert "<s>50.85</s>" in rows
    assert "<s>0.887</s>" in rows
    assert "28.30" in rows
    assert "26.31 ± 0.89" in rows
    assert "optimizer_steps 47" in rows
    assert rows.index("50.85") < rows.index("28.30") < rows.index("26.31")


def test_every_printed_pair_lies_within_its_range(html):
    assert "20 of 20 printed pairs lie within" in html


def test_what_rounding_leaves_open_is_said(html):
    assert "undetermined at this precision" in html
    pair = re.search(r"<td class=\"l\">tulu_control − evil_correct</td>.*?</tr>", html, re.S).group()
    assert "[.0046, .0052]" in pair


@pytest.mark.parametrize("figure", ["1.62", "4.58", "19.7", "with the printed SD 19.8", "0.8270", "0.7865"])
def test_figures_printed_beside_the_table_are_recomputed(html, figure):
    found = re.search(r'id="printed-beside">.*?</table>', html, re.S).group()
    assert figure in found


def test_one_value_before_em_has_no_interval_and_no_test(made):
    text = (made / "report.md").read_text()
    assert "n = 1: no SD, no interval" in text


def test_two_runs_give_the_same_bytes(made, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    overview.reference(tmp_path)
    files = [p.relative_to(made) for p in made.rglob("*") if p.is_file()]
    assert len(files) > 8
    for file in files:
        assert (made / file).read_bytes() == (tmp_path / file).read_bytes(), file
