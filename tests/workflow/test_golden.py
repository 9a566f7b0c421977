"""Numbers that a rebuild must not move. What changes them on purpose changes these files, and CHANGELOG says why.

demo_scores.csv and demo_claims.json are of the whole demo; here its first two conditions and seeds are held against
them. Another processor may round otherwise, hence the tolerance; `benchmarks/same_bytes.py` compares bytes.
"""

import csv
import json
from pathlib import Path

import pytest

from workflow.report import overview

GOLDEN = Path(__file__).parents[1] / "golden"
ROOT = Path(__file__).parents[2]


def read(path: Path) -> dict[tuple[str, ...], dict[str, str]]:
    with open(path, newline="") as file:
        return {(r["cell"], r["instrument"], r["metric"]): r for r in csv.DictReader(file)}


def test_scores_of_the_demo_stand(finished):
    golden = read(GOLDEN / "demo_scores.csv")
    (path,) = finished.glob("results/report/*/*/out/scores.csv")
    scores = read(path)
    assert len(scores) > 50
    for place, row in scores.items():
        assert place in golden
        for column in ("unit", "denominator", "n_items", "phase"):
            assert row[column] == golden[place][column], (place, column)
        wide = 0.15 if "fraction" in row["unit"] else 8.0
        assert float(row["value"] or 0) == pytest.approx(float(golden[place]["value"] or 0), abs=wide), place


def test_claims_of_the_published_table_stand(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    overview.reference(tmp_path)
    golden = json.loads((GOLDEN / "reference_claims.json").read_bytes())
    assert json.loads((tmp_path / "claims.json").read_bytes()) == golden
