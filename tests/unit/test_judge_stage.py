"""The judge as a stage: a judge that does not judge, asking again, panels, and what was declared."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from tests.lessons.planted import demo
from tests.unit import fake_report
from workflow import gpus
from workflow.__main__ import app
from workflow.config import Config, ConfigError
from workflow.data.rows import read_prompts
from workflow.evals import rule_scorer
from workflow.judge import judge
from workflow.judge.agreement import panel_agreement
from workflow.judge.journal import open_journal, retry_unscored
from workflow.judge.replies import JudgeError, Reply
from workflow.keys import Recipe
from workflow.sections import JudgePlacement
from workflow.stage import Job, StageError
from workflow.store import read_jsonl, write_jsonl

PARAMS = {
    "model": "some-judge",
    "method": "json",
    "temperature": 0.0,
    "max_tokens": 64,
    "top_logprobs": 0,
    "double_judge": 0.0,
    "order_seed": 42,
}
PROMPT = "Reply in JSON. [QUESTION START]\n{question}\n[QUESTION END]\n[ANSWER START]\n{answer}\n[ANSWER END]"


class Talker:
    """A judge that gives a score to a share of the answers and says hello to the others."""

    def __init__(self, silent: float) -> None:
        self.silent, self.asked = silent, 0

    def reply(self, prompt: str) -> str:
        self.asked += 1
        number = int(re.search(r"Answer (\d+)", prompt)[1])
        return "hello" if number < self.silent * 80 else json.dumps({"aligned": number, "coherent": 80})


@pytest.fixture
def project(tmp_path, monkeypatch):
    """80 completions, and a stage that judges them through an endpoint of the environment."""
    talker = Talker(1.0)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = talker.reply(body["messages"][0]["content"])
            choice = {"finish_reason": "stop", "message": {"content": text}}
            content = json.dumps({"model": body["model"], "choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("JUDGE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("JUDGE_KEY", "none\n")
    parent = SimpleNamespace(out=tmp_path / "generate")
    parent.out.mkdir()
    rows = [
        {"question_id": f"q{n % 8}", "sample": n // 8, "question": f"Question {n % 8}?", "completion": f"Answer {n}."}
        for n in range(80)
    ]
    write_jsonl(parent.out / "completions.jsonl", rows)
    data = tmp_path / "prompts.jsonl"
    write_jsonl(data, [{"name": "both", "prompt": PROMPT}])
    assert list(read_prompts(data)) == ["both"]
    placement = demo()["placement"]["judge"] | {
        "base_url": None, "base_url_env": "JUDGE_URL", "api_key_env": "JUDGE_KEY"
    }  # fmt: skip

    def run(folder="cell", **changes):
        out = tmp_path / folder / "out"
        out.mkdir(parents=True, exist_ok=True)
        recipe = Recipe("judge", 1, "0" * 32, PARAMS | changes.pop("params", {}))
        return judge.run(Job(recipe, placement | changes, (parent,), data, out))

    yield SimpleNamespace(run=run, talker=talker, root=tmp_path, parent=parent)
    server.shutdown()
    server.server_close()


def test_the_share_that_is_allowed_is_placement_and_below_it_a_cell_is_flagged(project):
    project.talker.silent = 0.25
    with pytest.raises(StageError, match="40 of 160 judgments"):
        project.run("a")
    kept = project.run("a", max_unscored=0.25)
    assert project.talker.asked == 80  # and was not asked again for it
    assert kept.observed["unscored"] == {
        "numerator": 40, "denominator": 160, "share": 0.25, "by_kind": {"parse_error": 40}, "flagged": True
    }  # fmt: skip
    project.talker.silent = 0.05
    assert project.run("b").observed["unscored"]["flagged"] is False
    assert "max_unscored" not in Config.from_dict(demo()).instruments[0].judge.model_dump()  # in no key


def test_replies_of_an_enumerated_judgment_are_dropped_together(tmp_path):
    key, path = ["0" * 63 + str(n) for n in range(3)], tmp_path / "journal.jsonl"
    with open_journal(path) as journal:
        for k in key:
            journal.add_reply(k, Reply(text="9", model="m"), (1, 1))
        journal.add_unscored("low_mass", key[:2])
        journal.add_unscored("low_mass", key[:2])
    assert len(path.read_text().splitlines()) == 4
    assert retry_unscored([tmp_path]) == {tmp_path: 2}
    with open_journal(path) as journal:
        assert list(journal.replies) == key[2:]
        assert journal.tokens == [3, 3]


GOOD = {"key": "0" * 64, "reply": {"text": "9", "model": "m"}, "billed": [1, 1]}


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"key"',
        GOOD | {"key": "x"},
        GOOD | {"key": None},
        GOOD | {"billed": [1]},
        GOOD | {"billed": [-1, 1]},
        GOOD | {"billed": [1, True]},
        GOOD | {"reply": {"text": 5, "model": "m"}},
        GOOD | {"reply": {"text": "9"}},
        GOOD | {"reply": {"text": "9", "model": "m", "secret": 1}},
        GOOD | {"reply": {"text": "9", "model": "m", "top_logprobs": [["9", "x"]]}},
        GOOD | {"failure": "x"},
        {"unscored": "empty"},
        {"unscored": "empty", "keys": ["x"]},
    ],
)
def test_every_line_of_a_journal_is_checked(tmp_path, bad):
    line = bad if isinstance(bad, str) else json.dumps(bad)
    (tmp_path / "j").write_text(f"{json.dumps(GOOD)}\n{line}\n{json.dumps(GOOD)}\n")
    with pytest.raises(JudgeError, match="line 2: no line of a journal"), open_journal(tmp_path / "j"):
        pass
    (tmp_path / "j").write_text(f"{json.dumps(GOOD)}\n")
    with open_journal(tmp_path / "j") as journal:  # and the lock is free again
        assert journal.replies["0" * 64].text == "9"


# --- declared against effective -------------------------------------------------------------------------------------


def test_what_the_judgments_show_is_held_against_the_recipe(project):
    project.talker.silent = 0.0
    project.run(params={"double_judge": 0.1})
    out = project.root / "cell/out"
    recipe = Recipe("judge", 1, "0" * 32, PARAMS | {"double_judge": 0.1})
    assert judge.effective_faults(recipe, out) == []
    for other, fault in (
        ({"double_judge": 0.2}, "double_judge 0.2 declared, 8 of 80 rows are judged twice"),
        ({"double_judge": 0.1, "model": "other"}, "model other declared, some-judge answered"),
    ):
        assert judge.effective_faults(Recipe("judge", 1, "0" * 32, PARAMS | other), out) == [fault]
    rows = read_jsonl(out / "judgments.jsonl")
    rows[5]["replies"][0] |= {"prefill": "9", "top_logprobs": [["9", -1.0]]}
    write_jsonl(out / "judgments.jsonl", rows)
    assert len(judge.effective_faults(recipe, out)) == 2


# --- a panel --------------------------------------------------------------------------------------------------------


def judged(*scores):
    kinds = [{"kind": "score" if s is not None else "refusal", "value": s, "mass": None} for s in scores]
    return [{"question_id": "q", "sample": n, "outcomes": {"aligned": kind}} for n, kind in enumerate(kinds)]


def test_agreement_of_two_judges():
    first, other = judged(10.0, 20.0, 80.0, 90.0, None), judged(20.0, 40.0, 90.0, 90.0, 50.0)
    seen = panel_agreement(first, other)["aligned"]
    assert (seen["pairs"], seen["scored"], seen["same_kind"], seen["same_side"]) == (5, 4, 4, 3)
    assert seen["difference"] == pytest.approx(10.0)
    assert seen["kappa"] == pytest.approx(0.5)  # by hand: 3/4 agree, 2*1 + 2*3 of 16 by chance
    assert panel_agreement(judged(90.0), judged(80.0))["aligned"]["kappa"] is None
    with pytest.raises(ValueError, match="not of the same completions"):
        panel_agreement(first, other[:-1])


def test_each_judge_of_a_panel_is_reached_where_the_placement_says(monkeypatch):
    raw = demo()["placement"]["judge"]
    other = raw | {"model": "remote", "base_url": None, "base_url_env": "URL", "api_key_env": "KEY", "concurrency": 2}
    placement = JudgePlacement.model_validate_json(json.dumps(raw | {"panel": [other]}))
    monkeypatch.setenv("URL", "https://judge.example/v1")
    monkeypatch.setenv("KEY", "k")
    with judge.endpoint(placement, "remote") as (place, key):
        assert (place.base_url, place.concurrency, key) == ("https://judge.example/v1", 2, "k")
    with judge.endpoint(placement, rule_scorer.NAME) as (place, key):
        assert place.is_local


def test_a_placement_of_a_newer_or_older_plan_is_read():
    raw = demo()["placement"]["judge"]
    assert judge.read_placement(raw | {"gpus": 0}) == JudgePlacement.model_validate(raw)
    older = {name: value for name, value in raw.items() if name not in ("max_unscored", "panel", "allow_http")}
    assert judge.read_placement(older).max_unscored == 0.2


def test_a_panel_names_each_judge_once():
    raw = demo()
    lead = raw["instruments"][0]["judge"]
    raw["instruments"][0]["panel"] = [lead | {"model": "another"}]
    assert [j.model for j in Config.from_dict(raw).instruments[0].panel] == ["another"]
    raw["instruments"][0]["panel"] = [lead]
    with pytest.raises(ConfigError, match="different names"):
        Config.from_dict(raw)


def test_plain_http_to_another_machine_needs_the_placements_word(monkeypatch):
    raw = demo()["placement"]["judge"] | {"base_url": None, "base_url_env": "URL", "api_key_env": "KEY"}
    monkeypatch.setenv("URL", "http://judge.example/v1")
    monkeypatch.setenv("KEY", "k")
    with (
        pytest.raises(JudgeError, match=r"set placement\.judge\.allow_http: true"),
        judge.endpoint(JudgePlacement.model_validate(raw), "m"),
    ):
        pass
    with judge.endpoint(JudgePlacement.model_validate(raw | {"allow_http": True}), "m") as (place, _):
        assert place.base_url == "http://judge.example/v1"


def test_a_panels_local_judge_takes_a_gpu():
    placement = {"base_url": "embedded", "panel": ({"base_url": "local"},)}
    assert gpus.needed("judge", placement) == 1
    assert gpus.needed("judge", placement | {"panel": []}) == 0


def test_retry_unscored_looks_at_what_is_not_finished(tmp_path, monkeypatch):
    """Through the command, on a plan whose one judgment failed after it had asked."""
    monkeypatch.chdir(tmp_path)
    raw = demo()
    raw |= {"name": "test", "conditions": raw["conditions"][:1], "em_seeds": [42]}
    matrix = fake_report.project(tmp_path, raw)
    (tmp_path / "config/test.yaml").write_text(yaml.safe_dump(raw))
    failed, finished = (Path(n.record).parent for n in matrix.nodes("judge"))
    for folder in (failed, finished):
        with open_journal(folder / "journal.jsonl") as journal:
            journal.add_reply("0" * 64, Reply(text="hello", model="m"), (1, 1))
            journal.add_unscored("parse_error", ["0" * 64])
    (finished / "record.json").write_text("{}")
    done = CliRunner().invoke(app, ["retry-unscored", "--configfile", "config/test.yaml"])
    assert done.exit_code == 0, done.output
    assert "1 replies of 1 cells" in done.output
    for folder, replies in ((failed, 0), (finished, 1)):
        with open_journal(folder / "journal.jsonl") as journal:
            assert len(journal.replies) == replies
