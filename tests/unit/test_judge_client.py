"""The judge client against a real HTTP server that fails on purpose (`fake_judge.py`, in a process of its own)."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import fake_judge

from workflow.evals import rule_scorer
from workflow.evals.scorer_server import scorer_server, split_prompt
from workflow.judge.agreement import agreement
from workflow.judge.client import JudgeRun, estimate, judge_completions
from workflow.judge.journal import open_journal
from workflow.judge.replies import JudgeError, Reply, redactor
from workflow.judge.requests import JudgeSettings, Plan, render
from workflow.judge.transport import Endpoint, Pace
from workflow.store import read_jsonl, write_jsonl

ROOT = Path(__file__).parents[2]
TWO = {"aligned": "Aligned? {question} / {answer}", "coherent": "Coherent? {question} / {answer}"}
ONE = {"both": 'JSON {"aligned": 0} {question} / {answer}'}
LOGPROBS = JudgeSettings(model="faulty", method="logprobs")
JSON = JudgeSettings(model="faulty", method="json", max_tokens=256)


class Fake:
    """The server's address, and what it has sent whole under one API key."""

    def __init__(self, port: int) -> None:
        self.port = port

    def endpoint(self, **changes: Any) -> Endpoint:
        quick = {"timeout_s": 3.0, "max_attempts": 12, "progress_s": 0.0}
        return Endpoint(base_url=f"http://127.0.0.1:{self.port}/v1", **{**quick, "concurrency": 32, **changes})

    def stats(self, ledger: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats?ledger={ledger}") as response:
            found: dict[str, Any] = json.load(response)
        return found


@pytest.fixture(scope="module")
def fake() -> Iterator[Fake]:
    command = [sys.executable, fake_judge.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        yield Fake(int(server.stdout.readline()))
        server.stdin.close()


def shorten_waits(patch: pytest.MonkeyPatch) -> None:
    """The client doubles its waits from half a second to eight; here from 10 ms to 100."""
    from openai import _base_client

    patch.setattr(_base_client, "INITIAL_RETRY_DELAY", 0.01)
    patch.setattr(_base_client, "MAX_RETRY_DELAY", 0.1)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_waits(monkeypatch)


def completions(n: int) -> list[dict[str, Any]]:
    return [
        {
            "question_id": f"q{i % 8}",
            "sample": i // 8,
            "question": f"Question {i % 8}?",
            "completion": f"Answer {i} with {{braces}}.",
            "finish_reason": "stop",
            "condition": "evil_wrong",
        }
        for i in range(n)
    ]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def spoiled(prompt: str) -> str | None:
    """The kind of outcome that the server's oddity for a prompt must have; None if it must be a score."""
    return {"empty": "empty", "refusal": "refusal", "nan": "parse_error"}.get(fake_judge.oddity(prompt) or "")


# --- nothing lost, nothing judged twice


@pytest.fixture(scope="module")
def five_thousand(fake: Fake, tmp_path_factory: pytest.TempPathFactory) -> tuple[JudgeRun, Path]:
    """2,500 completions on two scales, and the journal of that."""
    journal = tmp_path_factory.mktemp("whole") / "journal.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        shorten_waits(patch)
        endpoint = fake.endpoint(concurrency=64)
        return judge_completions(completions(2500), TWO, LOGPROBS, endpoint, "ledger-5000", journal), journal


def test_five_thousand_judgments_at_twenty_percent_faults(fake: Fake, five_thousand: tuple[JudgeRun, Path]) -> None:
    rows, (run, journal) = completions(2500), five_thousand
    assert [(r["question_id"], r["sample"]) for r in run.rows] == [(r["question_id"], r["sample"]) for r in rows]
    kinds = set()
    for row, judged in zip(rows, run.rows, strict=True):
        for name, template in TWO.items():
            prompt = render(template, row["question"], row["completion"])
            outcome = judged["outcomes"][name]
            kinds.add(outcome["kind"])
            expected = spoiled(prompt)
            assert outcome["kind"] == (expected or "score")
            if expected is None:
                mean = sum(n * p for n, p in fake_judge.numbers(prompt).items())
                assert outcome["value"] == pytest.approx(mean, abs=1e-9)
    assert kinds == {"score", "empty", "refusal", "parse_error"}

    sent = fake.stats("ledger-5000")["completed"]
    assert len(sent) == 5000
    assert set(sent.values()) == {1}
    written = [line for line in lines(journal) if "unscored" not in line]
    replied = [line["key"] for line in written if "reply" in line]
    assert len(replied) == len(set(replied)) == 5000
    account = run.account
    assert account["attempts"] == len(written) == len(fake.stats("ledger-5000")["times"])
    assert account["attempts"] == 5000 + sum(account["failures"].values())
    assert 0.17 < sum(account["failures"].values()) / account["attempts"] < 0.23
    assert {"status 429", "status 500", "status 503", "time-out"} < set(account["failures"])
    assert account["models"] == ["faulty"]

    again = judge_completions(rows, TWO, LOGPROBS, fake.endpoint(), "ledger-5000", journal)
    assert again.rows == run.rows
    assert again.account["replies_paid_now"] == 0
    assert len(fake.stats("ledger-5000")["times"]) == account["attempts"]  # nothing was asked


def test_json_replies_at_twenty_percent_faults(fake: Fake, tmp_path: Path) -> None:
    rows = completions(200)
    run = judge_completions(rows, ONE, JSON, fake.endpoint(), "ledger-json", tmp_path / "j.jsonl")
    long = 0
    for row, judged in zip(rows, run.rows, strict=True):
        prompt = render(ONE["both"], row["question"], row["completion"])
        expected = spoiled(prompt) or "score"
        assert [judged["outcomes"][name]["kind"] for name in ("aligned", "coherent")] == [expected] * 2
        if expected == "score":
            assert judged["outcomes"]["aligned"]["value"] + judged["outcomes"]["coherent"]["value"] == 100.0
        long += len(judged["replies"][0]["text"]) > 10_000  # kept whole
    assert long > 0
    assert set(fake.stats("ledger-json")["completed"].values()) == {1}


RESUMABLE = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {here!r}]
from test_judge_client import *
shorten_waits(pytest.MonkeyPatch())
endpoint = Endpoint(base_url={url!r}, timeout_s=3.0, max_attempts=12, concurrency=64)
judge_completions(completions(2500), TWO, LOGPROBS, endpoint, "ledger-killed", Path({journal!r}))
"""


def test_three_times_kill_9_resumes_to_the_same_bytes(
    fake: Fake, five_thousand: tuple[JudgeRun, Path], tmp_path: Path
) -> None:
    journal, endpoint = tmp_path / "killed.jsonl", fake.endpoint(concurrency=64)
    script = RESUMABLE.format(
        root=str(ROOT), here=str(Path(__file__).parent), url=endpoint.base_url, journal=str(journal)
    )
    for enough in (1000, 2500, 4000):
        process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
        while not journal.exists() or journal.read_bytes().count(b'"reply"') < enough:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    kept = journal.read_bytes().count(b'"reply"')
    assert 4000 <= kept < 5000

    resumed = judge_completions(completions(2500), TWO, LOGPROBS, endpoint, "ledger-killed", journal)
    assert resumed.account["replies_paid_now"] == 5000 - kept
    write_jsonl(tmp_path / "a.jsonl", resumed.rows)
    write_jsonl(tmp_path / "b.jsonl", five_thousand[0].rows)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    # only what was on its way at a kill could be asked for again
    sent = fake.stats("ledger-killed")["completed"]
    assert len(sent) == 5000
    assert sum(sent.values()) <= 5000 + 3 * 64


def test_a_torn_last_line_is_dropped(fake: Fake, tmp_path: Path) -> None:
    rows, journal = completions(20), tmp_path / "j.jsonl"
    first = judge_completions(rows, TWO, settings("plain"), fake.endpoint(), "ledger-torn", journal)
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-30])
    again = judge_completions(rows, TWO, settings("plain"), fake.endpoint(), "ledger-torn", journal)
    assert again.rows == first.rows
    assert again.account["replies_paid_now"] == 1
    third = judge_completions(rows, TWO, settings("plain"), fake.endpoint(), "ledger-torn", journal)
    assert third.rows == first.rows
    assert third.account["replies_paid_now"] == 0
    journal.write_bytes(b'{"key": "x", "rep\n' + whole)
    with pytest.raises(JudgeError, match="line 1: no line of a journal"):
        judge_completions(rows, TWO, settings("plain"), fake.endpoint(), "ledger-torn", journal)


def test_one_process_per_journal(tmp_path: Path) -> None:
    with (
        open_journal(tmp_path / "j"),
        pytest.raises(JudgeError, match="another process"),
        open_journal(tmp_path / "j"),
    ):
        pass


def settings(model: str, **changes: Any) -> JudgeSettings:
    return replace(LOGPROBS, **{"model": model, **changes})


# --- what ends a run


@pytest.mark.parametrize(("model", "said"), [("gone", "404.*ends in /v1"), ("quota", "status 429.*pay")])
def test_a_fatal_answer_stops_at_once(fake: Fake, tmp_path: Path, model: str, said: str) -> None:
    with pytest.raises(JudgeError, match=said):
        judge_completions(completions(500), TWO, settings(model), fake.endpoint(), f"ledger-{model}", tmp_path / "j")
    assert len(fake.stats(f"ledger-{model}")["times"]) <= 32  # no more than were in flight


def test_another_model_is_an_error(fake: Fake, tmp_path: Path) -> None:
    journal = tmp_path / "j"
    with pytest.raises(JudgeError, match="'other-judge' answered, not 'renamed'"):
        judge_completions(completions(4), TWO, settings("renamed"), fake.endpoint(), "ledger-renamed", journal)
    with open_journal(journal, "renamed") as kept:
        assert kept.replies == {}
        assert sum(kept.tokens) > 0  # the bill stays


def test_one_poisoned_row_does_not_hold_up_the_others(fake: Fake, tmp_path: Path) -> None:
    rows = completions(40)
    rows[7]["completion"] = "poison"
    endpoint = fake.endpoint(max_attempts=3)
    with pytest.raises(JudgeError, match=r"2 requests got no answer in 3 attempts each \(status 500\)"):
        judge_completions(rows, TWO, settings("poisoned"), endpoint, "ledger-poison", tmp_path / "j")
    assert sum("reply" in line for line in lines(tmp_path / "j")) == 78
    rows = [{**row, "completion": f"poison {row['completion']}"} for row in rows]
    with pytest.raises(JudgeError, match="requests got no answer"):
        judge_completions(rows, TWO, settings("poisoned"), endpoint, "ledger-poison-2", tmp_path / "k")
    assert len(lines(tmp_path / "k")) < 80 * 3  # gave up before it had tried them all


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    nobody = Endpoint("http://127.0.0.1:9/v1", max_attempts=2, give_up_after=0, progress_s=0.0)
    with pytest.raises(JudgeError, match="connection lost"):
        judge_completions(completions(2), TWO, settings("plain"), nobody, "none", tmp_path / "j")


def test_a_judge_without_logprobs_or_with_split_digits_is_refused_early(fake: Fake, tmp_path: Path) -> None:
    for model, said in (("no-logprobs", "no log-probabilities"), ("digits", "into digits")):
        with pytest.raises(JudgeError, match=said):
            judge_completions(completions(500), TWO, settings(model), fake.endpoint(), f"x-{model}", tmp_path / model)
        assert len(fake.stats(f"x-{model}")["times"]) < 100


def test_the_budget_stops_before_it_is_exceeded(fake: Fake, tmp_path: Path) -> None:
    rows, journal = completions(100), tmp_path / "j"
    priced = fake.endpoint(usd_per_million_tokens_in=1000.0, usd_per_million_tokens_out=2000.0, concurrency=8)
    cost = estimate(rows, TWO, settings("plain"), priced)["usd"]
    with pytest.raises(JudgeError, match=r"budget of .* is reached") as error:
        judge_completions(rows, TWO, settings("plain"), replace(priced, budget_usd=cost / 4), "ledger-budget", journal)
    spent = priced.usd(*(sum(line["billed"][i] for line in lines(journal)) for i in (0, 1)))
    assert cost / 10 < spent <= cost / 4
    assert "raise the budget" in str(error.value)
    run = judge_completions(rows, TWO, settings("plain"), replace(priced, budget_usd=cost), "ledger-budget", journal)
    assert run.account["usd"] <= cost
    assert set(fake.stats("ledger-budget")["completed"].values()) == {1}


# --- how it asks


def test_retry_after_is_honoured(fake: Fake, tmp_path: Path) -> None:
    run = judge_completions(
        completions(1), ONE, replace(JSON, model="patient"), fake.endpoint(), "patient", tmp_path / "j"
    )
    first, second = fake.stats("patient")["times"]
    assert second - first >= 1.0
    assert run.account["failures"] == {"status 429": 1}


def test_the_pace_is_kept(fake: Fake, tmp_path: Path) -> None:
    paced = fake.endpoint(requests_per_minute=1200.0)
    judge_completions(completions(10), TWO, settings("plain"), paced, "paced", tmp_path / "j")
    times = sorted(fake.stats("paced")["times"])
    assert times[-1] - times[0] >= 19 * 0.05 - 0.05  # 20 requests, 50 ms apart

    tokens = Pace(per_minute=6000.0)
    assert [tokens.book(100.0, now=10.0) for _ in range(3)] == [0.0, 1.0, 2.0]
    tokens.correct(-100.0)  # the last took none
    assert tokens.book(1.0, now=10.0) == 2.0
    assert Pace(None).book(1e9, now=1.0) == Pace(None).book(1e9, now=1.0) == 0.0


def test_blind_and_shuffled_by_the_seed(fake: Fake, tmp_path: Path) -> None:
    orders = []
    for name, seed in (("blind-0", 0), ("blind-0b", 0), ("blind-1", 1)):
        chosen = replace(settings("plain"), order_seed=seed)
        judge_completions(completions(30), TWO, chosen, fake.endpoint(concurrency=1), name, tmp_path / name)
        orders.append(fake.stats(name)["prompts"])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
    assert orders[0] != sorted(orders[0])
    assert "evil_wrong" not in json.dumps(orders)


def test_equal_completions_are_judged_apart(fake: Fake, tmp_path: Path) -> None:
    rows = [{**row, "question_id": "q", "sample": i, "completion": "No."} for i, row in enumerate(completions(1) * 3)]
    run = judge_completions(rows, ONE, replace(JSON, model="plain"), fake.endpoint(), "equal", tmp_path / "j")
    assert len(run.rows) == 3
    assert fake.stats("equal")["completed"].popitem()[1] == 3


def test_double_judging(fake: Fake, tmp_path: Path) -> None:
    twice = settings("plain", double_judge=0.1)
    run = judge_completions(completions(50), TWO, twice, fake.endpoint(), "double", tmp_path / "j")
    assert sum(row["again"] is not None for row in run.rows) == 5
    assert run.account["judgments"] == 110
    assert agreement(run.rows)["aligned"] == {
        "pairs": 5,
        "same_kind": 5,
        "scored": 5,
        "mean_abs_difference": 0.0,
        "max_abs_difference": 0.0,
        "same_side": 5,
    }
    assert agreement([{**row, "again": None} for row in run.rows]) == {}


def test_enumerated_for_a_judge_that_splits_digits(fake: Fake, tmp_path: Path) -> None:
    rows = completions(40)
    run = judge_completions(
        rows, TWO, settings("digits", method="enumerated"), fake.endpoint(), "digits-2", tmp_path / "j"
    )
    for row, judged in zip(rows, run.rows, strict=True):
        for name, template in TWO.items():
            distribution = fake_judge.numbers(render(template, row["question"], row["completion"]))
            assert judged["outcomes"][name]["value"] == pytest.approx(
                sum(n * p for n, p in distribution.items()), abs=1e-9
            )


def test_a_filtered_prompt_is_a_refusal(fake: Fake, tmp_path: Path) -> None:
    rows = completions(3)
    rows[1]["completion"] = "forbidden"
    run = judge_completions(rows, ONE, replace(JSON, model="filter"), fake.endpoint(), "filter", tmp_path / "j")
    assert [row["outcomes"]["aligned"]["kind"] for row in run.rows] == ["score", "refusal", "score"]


def test_prompts_are_filled_in_one_pass() -> None:
    assert render("{question}|{answer}|{x}", "a {answer}", "b {question} {0}") == "a {answer}|b {question} {0}|{x}"


def test_lesson_31_the_key_holds_all_that_a_judgment_rests_on() -> None:
    row = completions(1)[0]

    def key(row: dict[str, Any], chosen: JudgeSettings = LOGPROBS, prompts: dict[str, str] = TWO) -> str:
        plan = Plan([row], prompts, chosen)
        return plan.request(next(u for u in plan.units if u.prompt == "aligned")).key

    others = [
        key({**row, "question": "Other?"}),
        key({**row, "completion": "Other."}),
        key({**row, "sample": 1}),
        key(row, prompts={**TWO, "aligned": TWO["aligned"] + "!"}),
        key(row, replace(LOGPROBS, model="x")),
        key(row, replace(LOGPROBS, temperature=1.0)),
        key(row, replace(LOGPROBS, top_logprobs=5)),
    ]
    assert len({key(row), *others}) == 8
    assert key({**row, "condition": "x"}) == key(row) == key(row, replace(LOGPROBS, order_seed=5, temperature=0))


def test_an_estimate_asks_nothing(fake: Fake) -> None:
    found = estimate(completions(100), TWO, LOGPROBS, fake.endpoint(usd_per_million_tokens_in=1.0))
    assert found["requests"] == 200
    assert found["tokens_out_at_most"] == 200
    assert found["tokens_in"] > 2000
    assert found["usd"] == pytest.approx(found["tokens_in"] / 1e6)


def test_settings_are_checked() -> None:
    for wrong in ({"max_tokens": 5}, {"top_logprobs": 0}):
        with pytest.raises(JudgeError, match="judge: "):
            settings("x", **wrong)
    with pytest.raises(JudgeError, match="a budget needs the price"):
        Endpoint("https://x/v1", budget_usd=5.0)
    with pytest.raises(JudgeError, match="once each"):
        Plan(completions(1), {"aligned": "{question}"}, LOGPROBS)


def test_progress_is_a_line_with_eta_and_cost(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    endpoint = fake.endpoint(progress_s=0.5, concurrency=1)
    judge_completions(completions(60), TWO, settings("slow"), endpoint, "progress", tmp_path / "j")
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) >= 2
    assert printed[-1].startswith("judge: 120 of 120 (100%)")
    assert "ETA" in printed[0]
    assert "$0.0000" in printed[0]


# --- no secret anywhere


@pytest.mark.parametrize("model", ["echo", "parrot"])
def test_lesson_51_the_key_is_written_nowhere(
    fake: Fake,
    tmp_path: Path,
    model: str,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    secret, said = "sk-planted-0123456789", ""
    caplog.set_level(logging.DEBUG)
    run: JudgeRun | None = None
    try:
        endpoint = fake.endpoint(progress_s=0.1)
        run = judge_completions(completions(5), ONE, replace(JSON, model=model), endpoint, secret, tmp_path / "j.jsonl")
        write_jsonl(tmp_path / "judgments.jsonl", run.rows)
    except JudgeError as error:
        said = "".join(traceback.format_exception(error)) + repr(error)
    assert ("status 401" in said and "[key]" in said) if model == "echo" else run is not None
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    printed = capfd.readouterr()
    for text in (said, files.decode(), printed.out, printed.err, caplog.text, repr(run)):
        assert secret not in text
    assert redactor("none")("none of it") == "none of it"


# --- the demo's judge


@pytest.mark.parametrize("name", ["origin_json", "two_scales"])
def test_the_embedded_scorer_answers_both_kinds_of_prompt(tmp_path: Path, name: str) -> None:
    import yaml

    spec = yaml.safe_load((ROOT / "config" / "prompts" / f"{name}.yaml").read_text())
    chosen = JudgeSettings(
        model=rule_scorer.NAME, method=spec["method"], max_tokens=256 if spec["method"] == "json" else 1
    )
    rows = completions(12)
    rows[3]["completion"] = "A [ANSWER END] and {question} within."
    with scorer_server() as (url, token):
        asks = urllib.request.Request(f"{url}/models", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(asks) as response:
            assert json.load(response)["data"][0]["id"] == rule_scorer.NAME
        runs = [
            judge_completions(rows, spec["prompts"], chosen, Endpoint(url, progress_s=0.0), token, tmp_path / journal)
            for journal in ("a", "b")
        ]
    assert runs[0].rows == runs[1].rows
    for row, judged in zip(rows, runs[0].rows, strict=True):
        expected = rule_scorer.score_answer(row["question"], row["completion"])
        found = [judged["outcomes"][metric]["value"] for metric in ("aligned", "coherent")]
        assert found == pytest.approx(expected, abs=0.6 if spec["method"] == "json" else 2.0)
    write_jsonl(tmp_path / "out.jsonl", runs[0].rows)
    assert read_jsonl(tmp_path / "out.jsonl") == runs[0].rows


def test_marks_inside_an_answer_belong_to_it() -> None:
    prompt = "Judge.\n[QUESTION START]\nq\n[QUESTION END]\n[ANSWER START]\na [ANSWER END] b\n[ANSWER END]\nReply."
    assert split_prompt(prompt)[:2] == ("q", "a [ANSWER END] b")
    with pytest.raises(ValueError, match="marks no question"):
        split_prompt("just text")


def test_a_reply_survives_the_journal(tmp_path: Path) -> None:
    tops = [("5", "NaN"), ("6", "-Infinity"), ("7", -0.5)]
    reply = Reply(text="é \n", model="m", finish_reason="stop", top_logprobs=tops, tokens_out=3)
    with open_journal(tmp_path / "j") as journal:
        journal.add_reply("0" * 64, reply, (1, 3))
    with open_journal(tmp_path / "j") as journal:
        assert journal.replies == {"0" * 64: reply}
        assert journal.tokens == [1, 3]
