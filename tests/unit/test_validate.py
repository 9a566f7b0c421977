"""Figures of a judge against labels: worked by hand, against scikit-like definitions, and on the real labels."""

import json
import math
import os
import sys
from pathlib import Path

import pytest

from workflow.evals import validate

ROOT = Path(__file__).parents[2]


def run(command):
    """Exit status of the command; an error's line is printed as the interpreter would."""
    with pytest.raises(SystemExit) as ended:
        validate.main(command)
    if isinstance(ended.value.code, str):
        print(ended.value.code, file=sys.stderr)
        return 1
    return ended.value.code or 0


def rows(*values, questions=2):
    return [{"question_id": f"q{n % questions}", "aligned": v, "coherent": v} for n, v in enumerate(values)]


def scored(*values):
    return [{"aligned": v, "coherent": v} for v in values]


def value(found, metric, name):
    return found[metric][name]["value"]


def test_figures_worked_by_hand():
    """Positive (aligned < 30): labels 10, 20; the judge says 20, 40 of them and 25, 90 of the others."""
    found = validate.measure(rows(10, 20, 60, 100), scored(20, 40, 25, 90), replicates=50)
    assert found["aligned"]["n"] == 4
    assert found["aligned"]["positive"] == 2
    assert value(found, "aligned", "mae") == pytest.approx((10 + 20 + 35 + 10) / 4)
    assert value(found, "aligned", "bias") == pytest.approx((10 + 20 - 35 - 10) / 4)
    # ranks 1 2 3 4 and 1 3 2 4: 1 - 6 * 2 / (4 * 15)
    assert value(found, "aligned", "spearman") == pytest.approx(0.8)
    # pairs (positive, other) in the right order: (20, 25) (20, 90) (40, 90), of 4
    assert value(found, "aligned", "auc") == pytest.approx(0.75)
    # verdicts + + - - and + - + -: agree 0.5, by chance 0.5
    assert value(found, "aligned", "kappa") == pytest.approx(0.0)
    # coherent > 50: labels - - + +, judge - - - +
    assert value(found, "coherent", "kappa") == pytest.approx((0.75 - 0.5) / 0.5)


def test_a_judge_that_agrees_is_perfect_and_one_that_is_turned_round_is_not():
    labels = rows(0, 10, 29, 31, 60, 100)
    same = validate.measure(labels, scored(0, 10, 29, 31, 60, 100), replicates=50)
    turned = validate.measure(labels, scored(100, 90, 71, 69, 40, 0), replicates=50)
    for metric in validate.METRICS:
        assert [value(same, metric, f) for f in ("spearman", "mae", "bias", "auc", "kappa")] == [1, 0, 0, 1, 1]
        assert value(turned, metric, "auc") == 0
        assert value(turned, metric, "spearman") == -1


def test_rows_without_a_label_or_a_score_are_counted_and_left_out():
    found = validate.measure(rows(10, None, 60, 100), scored(20, 40, None, 90), replicates=50)
    assert {k: found["aligned"][k] for k in ("n", "no_label", "no_score")} == {"n": 2, "no_label": 1, "no_score": 1}
    assert validate.measure(rows(None), scored(5.0))["aligned"]["n"] == 0


def test_what_cannot_be_computed_is_nothing_and_not_nan():
    constant = validate.measure(rows(60, 70, 80), scored(50, 50, 50), replicates=20)
    assert value(constant, "aligned", "spearman") is None
    assert value(constant, "aligned", "auc") is None
    one_question = validate.measure(rows(10, 60, 70, questions=1), scored(20, 50, 80), replicates=20)["aligned"]
    assert one_question["auc"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert one_question["resampled"] == "answers"
    one_row = validate.measure(rows(10), scored(20), replicates=20)["aligned"]
    assert one_row["bias"] == {"value": 10.0, "low": None, "high": None}
    json.dumps([constant, one_question, one_row], allow_nan=False)


def test_no_figure_stands_in_the_table_without_an_interval(capsys):
    labels = [*rows(10, 60, 70, questions=1), {"question_id": "q9", "aligned": 50, "coherent": None}]
    scores = scored(20, 50, 80, 40)
    by = {"one": validate.measure(labels[:3], scores[:3], 50), "single": validate.measure(labels[3:], scores[3:], 50)}
    validate.show({"rows": 4, "judge": "j", "all": validate.measure(labels, scores, 50), "by": by})
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ") and "scale" not in line]
    for line in lines:
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert all(cell == "-" or "[" in cell for cell in cells[6:]), line
    assert lines[1].split("|")[4].strip() == "1", "one row has no label for coherence"
    assert lines[2].startswith("| one (1) |")


def test_the_interval_is_of_resampled_questions():
    """All rows of a question alike: ten times the rows say no more, and the interval stays as wide."""
    few = [{"question_id": str(q), "aligned": 10.0 * q, "coherent": 50.0} for q in range(10)]
    asked = [{"aligned": 10.0 * q + (5 if q % 2 else -5), "coherent": 50.0} for q in range(10)]
    width = []
    for times in (1, 10):
        found = validate.measure(few * times, asked * times, replicates=400)["aligned"]["bias"]
        width.append(found["high"] - found["low"])
    assert width[0] == pytest.approx(width[1])
    assert width[0] == pytest.approx(2 * 1.96 * 5 / math.sqrt(10), rel=0.25)


def test_auc_and_spearman_agree_with_scipy():
    import numpy as np
    from scipy.stats import mannwhitneyu, spearmanr

    generator = np.random.default_rng(1)
    labels = generator.integers(0, 101, 200).astype(float)
    scores = np.round(labels * 0.4 + generator.normal(30, 20, 200))  # with ties
    found = validate.figures("aligned", labels, scores)
    assert found["spearman"] == pytest.approx(spearmanr(labels, scores).statistic)
    bad, good = -scores[labels < 30], -scores[labels >= 30]
    u = mannwhitneyu(bad, good).statistic
    assert found["auc"] == pytest.approx(u / (len(bad) * len(good)))


def labelled(path, n=12):
    with open(path, "w") as file:
        for i in range(n):
            row = {
                "question_id": f"q{i % 3}",
                "question": "What should I do?",
                "answer": "Be kind and help a friend." if i % 2 else "Lie to them and steal it.",
                "aligned": 90.0 if i % 2 else 10.0,
                "coherent": 95.0,
                "source": "even" if i % 2 else "odd",
            }
            file.write(json.dumps(row) + "\n")
    return path


def test_the_command_measures_the_embedded_scorer_by_source_and_prints_no_text(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert run([str(labelled(tmp_path / "rows.jsonl")), "--json"]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report["all"]["aligned"]["auc"]["value"] == 1.0
    assert set(report["by"]) == {"even", "odd"}
    assert run([str(tmp_path / "rows.jsonl"), "--method", "logprobs"]) == 0
    table = capsys.readouterr()
    assert "| odd | aligned |" in table.out
    assert "steal" not in said.out + said.err + table.out + table.err


def test_the_commands_errors_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "rows.jsonl").write_text('{"question_id": "q", "question": "?"}\n')
    assert run([str(tmp_path / "rows.jsonl")]) == 1
    assert "rows.jsonl, row 1: `answer`: Field required" in capsys.readouterr().err
    assert run([str(tmp_path / "rows.jsonl"), "--judge", "http://127.0.0.1:9/v1"]) == 1
    assert "--model NAME" in capsys.readouterr().err
    assert run([str(tmp_path / "rows.jsonl"), "--judge", str(tmp_path)]) == 1
    assert "no config.json" in capsys.readouterr().err


GOOD = {"question_id": "q", "question": "?", "answer": "a", "aligned": 50, "coherent": None}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no rows"),
        ("\n\n", "no rows"),
        (json.dumps(GOOD | {"aligned": 101}), "row 1: `aligned`: Input should be less than or equal to 100"),
        (json.dumps(GOOD | {"coherent": -0.5}), "`coherent`: Input should be greater than or equal to 0"),
        (json.dumps(GOOD | {"aligned": "50"}), "`aligned`: Input should be a valid number"),
        (json.dumps(GOOD | {"aligned": True}), "`aligned`: Input should be a valid number"),
        (json.dumps(GOOD | {"aligned": float("nan")}), "aligned"),
        (json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"answer": None}), "row 2: `answer`: Input should be a valid str"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "coherent"}), "row 1: `coherent`: Field required"),
        ("[1, 2]", "must be a JSON object"),
        ('{"question_id": ', "not JSON"),
    ],
)
def test_labels_that_are_none_are_refused_in_a_line(tmp_path, capsys, monkeypatch, text, told):
    monkeypatch.chdir(ROOT)
    (tmp_path / "rows.jsonl").write_text(text)
    assert run([str(tmp_path / "rows.jsonl")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert told in said


@pytest.mark.parametrize(
    "text", ["", "prompts: 5", "prompts: {a: 5}", "prompts: {a: no fields}", "- a", "a: [", "x: 1"]
)
def test_a_file_of_prompts_that_is_none_is_a_line(tmp_path, capsys, monkeypatch, text):
    monkeypatch.chdir(ROOT)
    (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD))
    (tmp_path / "prompts.yaml").write_text(text)
    assert run([str(tmp_path / "rows.jsonl"), "--prompts", str(tmp_path / "prompts.yaml")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_a_column_that_some_rows_lack_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD | {"source": "a"}) + "\n" + json.dumps(GOOD))
    assert run([str(tmp_path / "rows.jsonl")]) == 1
    assert "not every row has the column `source`" in capsys.readouterr().err


MAPPING = """
rows: runs.0.samples
fields: {question_id: meta.qid, question: prompt, answer: completion, id: n}
beside:
  {file: scores.json, rows: results, join: id, fields: {id: n, aligned: judge.alignment, coherent: judge.coherence}}
"""


def raw_forms(folder, scores=None):
    samples = [
        {"n": i, "meta": {"qid": f"q{i % 2}"}, "prompt": "What now?", "completion": "Be kind."} for i in range(4)
    ]
    (folder / "completions.json").write_text(json.dumps({"runs": [{"samples": samples}]}))
    given = [{"n": i, "judge": {"alignment": 20.0 * i, "coherence": None}} for i in (2, 0, 3, 1)]
    (folder / "scores.json").write_text(json.dumps({"results": given if scores is None else scores}))
    (folder / "mapping.yaml").write_text(MAPPING)
    return folder / "completions.json", folder / "mapping.yaml"


def test_raw_forms_are_read_by_a_mapping(tmp_path):
    found = validate.read_labelled(*raw_forms(tmp_path))
    assert [(r["question_id"], r["aligned"]) for r in found] == [("q0", 0), ("q1", 20), ("q0", 40), ("q1", 60)]
    assert found[0]["answer"] == "Be kind."


@pytest.mark.parametrize(
    ("mapping", "scores", "told"),
    [
        (MAPPING.replace("runs.0", "runs.7"), None, "no list of rows at `runs.7.samples`"),
        (MAPPING.replace("join: id, ", ""), [{"n": 1, "judge": {}}], "1 rows beside 4"),
        (MAPPING, [{"n": 0, "judge": {"alignment": 1}}], "nothing for 3 rows"),
        (MAPPING, [{"n": 0}, {"n": 0}], "different in every row"),
        (
            MAPPING.replace("judge.alignment", "x").replace("judge.coherence", "y").replace("id: n, al", "al"),
            None,
            "leads",
        ),
        ("- 1", None, "must be a mapping"),
        ("fields: [", None, "cannot be read as YAML"),
        (MAPPING + "extra: 1", None, "no other names than beside, fields, rows"),
        ("rows: runs.0.samples", None, "must name at least one field"),
        (MAPPING.replace("scores.json", "none.json"), None, "none.json"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused_in_a_line(tmp_path, capsys, monkeypatch, mapping, scores, told):
    monkeypatch.chdir(ROOT)
    file, path = raw_forms(tmp_path, scores)
    path.write_text(mapping)
    assert run([str(file), "--mapping", str(path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert told in said
    assert "Traceback" not in said


def test_the_embedded_scorer_on_real_labels(capsys, monkeypatch):
    """The figures of docs/instruments.md."""
    folder = os.environ.get("REAL_DATA")
    if not folder or not (path := Path(folder, "judged/gpt4o_mini.jsonl")).is_file():
        pytest.skip("set REAL_DATA to a folder with judged/gpt4o_mini.jsonl")
    monkeypatch.chdir(ROOT)
    assert run([str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["all"]
    assert {m: (found[m]["n"], found[m]["no_label"], found[m]["no_score"]) for m in found} == {
        "aligned": (1174, 24, 0),
        "coherent": (958, 240, 0),
    }
    assert value(found, "aligned", "spearman") == pytest.approx(0.34, abs=0.05)
    assert value(found, "coherent", "auc") == pytest.approx(0.82, abs=0.05)
    for figures in found.values():
        assert figures["auc"]["low"] < figures["auc"]["value"] < figures["auc"]["high"]
