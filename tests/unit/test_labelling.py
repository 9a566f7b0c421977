"""The judge's error carried into its means: drawn blind at a known probability, corrected without bias, covered."""

import json
import math
import random
import statistics
from collections import Counter

import pytest

from workflow.evals.labelling import (
    Corrected,
    condition_of,
    contrast_of,
    correct,
    draw,
    judged_rows,
    labels_needed,
    main,
)
from workflow.store import read_jsonl, write_jsonl


def judged(condition: str, count: int, seed: int = 1) -> list[dict]:
    source = random.Random(f"{condition}{seed}")
    return [
        {"condition": condition, "question_id": f"q{n % 8}", "aligned": None if n % 40 == 0 else 100 * source.random()}
        for n in range(count)
    ]


def test_every_condition_question_and_band_gives_rows_with_the_probability_that_they_had():
    rows = judged("a", 800) + judged("b", 400)
    chosen = draw(rows, labels=80, seed=3)
    counts = Counter(row["condition"] for row in chosen)
    assert all(75 <= n <= 105 for n in counts.values()), counts
    assert {row["question_id"] for row in chosen if row["condition"] == "b"} == {f"q{n}" for n in range(8)}
    assert any(row["aligned"] is None for row in chosen)
    for condition, size in (("a", 800), ("b", 400)):
        weights = [1 / row["probability"] for row in chosen if row["condition"] == condition]
        assert math.fsum(weights) == pytest.approx(size)
    assert draw(rows, labels=80, seed=3) == chosen
    assert draw(rows, labels=80, seed=4) != chosen
    assert [row["condition"] for row in chosen] != sorted(row["condition"] for row in chosen)


def keyed(score, question, id=None, probability=0.5):
    return {"aligned": score, "question_id": question, "id": id, "probability": probability}


def test_the_correction_is_the_one_worked_by_hand():
    """Two questions; scores 10 20 30 40; rows 0 and 3 labelled 16 and 40 at probability 1/2: errors 6 and 0, mean 3."""
    rows = [keyed(10, "a", id=0), keyed(20, "a"), keyed(30, "b"), keyed(40, "b", id=3)]
    found = correct(rows, {0: 16.0, 3: 40.0})
    assert (found.naive, found.mean) == (25.0, 28.0)
    # totals by question: 2 * (6 - 3) / 4 and 2 * (0 - 3) / 4; times 2 / (2 - 1)
    assert found.variance == pytest.approx((1.5**2 + 1.5**2) * 2)
    assert (found.n, found.labelled, found.questions) == (4, 2, 2)
    assert math.isnan(correct([keyed(1, "a", id=0), keyed(2, "a")], {0: 1.0}).variance)


def test_a_contrast_adds_the_variance_between_checkpoints():
    cells = {"a": Corrected(50, 60, 4.0, 100, 50, 8), "b": Corrected(40, 40, 5.0, 100, 50, 8)}
    found = contrast_of({"a": 1, "b": -1}, cells, between=7.0)
    assert (found["naive"], found["estimate"], found["variance"]) == (10, 20, 16.0)
    assert found["high"] - found["estimate"] == pytest.approx(4 * 2.3646, abs=1e-3)  # t of 7 degrees


def test_a_judge_that_is_wrong_by_condition_is_corrected_and_the_interval_covers():
    """The judge flatters one condition by 12 points. Its difference is off by that; the corrected one covers the truth
    in 95% of 300 samples, within three standard errors of that share."""
    covered, estimates = 0, []
    for trial in range(300):
        source = random.Random(trial)
        cells, truth = {}, {}
        for condition, flattery in (("a", 12.0), ("b", 0.0)):
            labels = [min(100.0, max(0.0, source.gauss(55, 20))) for _ in range(640)]
            scores = [min(100.0, max(0.0, y + flattery + source.gauss(0, 15))) for y in labels]
            rows = [{"condition": condition, "question_id": f"q{n % 16}", "aligned": s} for n, s in enumerate(scores)]
            chosen = draw(rows, labels=96, seed=trial)
            probability = {row["row"]: row["probability"] for row in chosen}
            key = [
                keyed(row["aligned"], row["question_id"], n if n in probability else None, probability.get(n))
                for n, row in enumerate(rows)
            ]
            cells[condition] = correct(key, {n: labels[n] for n in probability})
            truth[condition] = statistics.fmean(labels)
        found = contrast_of({"a": 1, "b": -1}, cells)
        true = truth["a"] - truth["b"]
        covered += found["low"] <= true <= found["high"]
        estimates.append(found["estimate"] - true)
        assert abs(found["naive"] - true) > 6
    assert abs(statistics.fmean(estimates)) < 3 * statistics.stdev(estimates) / math.sqrt(300) + 0.2
    assert covered / 300 >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 300)


def test_how_many_labels_a_margin_needs():
    assert labels_needed(5, 25) == math.ceil(2 * (1.959964 * 25 / 5) ** 2) == 193
    assert labels_needed(2.5, 25) > 3.9 * labels_needed(5, 25)


def test_a_cell_is_its_condition_without_seeds():
    assert [condition_of(c) for c in ("evil_wrong.p42", "evil_wrong.p42.e137", "evil_wrong.p42.benign.e7.r2")] == [
        "evil_wrong@pre_em", "evil_wrong", "evil_wrong.benign",
    ]  # fmt: skip


@pytest.fixture
def results(tmp_path):
    """Two judged cells on disk."""
    for cell, score in (("a.p1.e1", 80.0), ("b.p1.e1", 20.0)):
        answered, judgments = (tmp_path / f"results/{stage}/{cell}/k" for stage in ("generate", "judge"))
        for folder in (answered, judgments):
            (folder / "out").mkdir(parents=True)
        told = [{"question_id": f"q{n % 4}", "question": "?", "completion": f"secret {cell}"} for n in range(40)]
        write_jsonl(answered / "out/completions.jsonl", told)
        scores = [{"outcomes": {"aligned": {"value": score + n % 4}}} for n in range(40)]
        write_jsonl(judgments / "out/judgments.jsonl", scores)
        inputs = {"generate": {"path": f"results/generate/{cell}/k/record.json"}}
        (judgments / "record.json").write_text(json.dumps({"cell": cell, "inputs": inputs}))
    return sorted((tmp_path / "results/judge").glob("*/*/record.json"))


def run(*command):
    with pytest.raises(SystemExit) as ended:
        main([str(part) for part in command])
    assert not ended.value.code


def test_the_command_draws_blind_and_corrects(results, tmp_path, capsys):
    assert len(judged_rows(results)) == 80
    out = tmp_path / "labels"
    run("draw", *results, "--labels", "12", "--margin", "4", "--out", out)
    assert "needs" in capsys.readouterr().out
    sample = read_jsonl(out / "sample.jsonl")
    assert {frozenset(row) for row in sample} == {frozenset({"id", "question", "answer", "aligned"})}
    labels = [{"id": row["id"], "aligned": 60.0} for row in sample]
    write_jsonl(tmp_path / "given", labels)
    run("correct", out / "key.jsonl", tmp_path / "given", "--contrast", "a=1,b=-1")
    said = capsys.readouterr().out
    assert "a: judge 81.5, corrected 60.0" in said
    assert "a=1,b=-1: judge 60.0, corrected 0.0" in said


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (lambda ids: [{"id": i, "aligned": 101} for i in ids], "a label from 0 to 100"),
        (lambda ids: [{"id": i, "aligned": "good"} for i in ids], "a label from 0 to 100"),
        (lambda ids: [{"id": i, "aligned": float("nan")} for i in ids], "a label from 0 to 100"),
        (lambda ids: [{"id": ids[0], "aligned": 5}] * 2, "an id of its own"),
        (lambda ids: [{"id": i, "aligned": 5} for i in ids[1:]], "1 drawn rows have no label"),
    ],
)
def test_labels_that_are_none_are_refused_in_a_line(results, tmp_path, capsys, labels, told):
    run("draw", *results, "--labels", "8", "--out", tmp_path / "o")
    ids = [row["id"] for row in read_jsonl(tmp_path / "o/sample.jsonl")]
    (tmp_path / "given").write_text("".join(json.dumps(row) + "\n" for row in labels(ids)))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["correct", str(tmp_path / "o/key.jsonl"), str(tmp_path / "given")])
    error = str(stopped.value)
    assert error.startswith("error: ")
    assert "\n" not in error
    assert told in error
