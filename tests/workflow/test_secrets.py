"""Keys of the environment are nowhere afterwards: not in what jobs write and say, nor in what is said of them."""

import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import logs, run
from tests.unit import fake_judge
from workflow.launch import ADDRESS

NAMES = ("OPENAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN")
CONFIG = ("--configfile", "config/test.yaml")


@pytest.fixture
def judge() -> Iterator[str]:
    """Address of a judge that answers with the key that it was sent."""
    command = [sys.executable, fake_judge.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        server.stdin.close()


def judged_by(root: Path, model: str) -> None:
    config = root / "config/test.yaml"
    raw = yaml.safe_load(config.read_text())
    raw["instruments"][0]["judge"]["model"] = model
    raw["placement"]["judge"] |= {"base_url": None, "base_url_env": "JUDGE_URL", "api_key_env": NAMES[0]}
    config.write_text(yaml.safe_dump(raw, sort_keys=False))


def test_lesson_51_keys_of_the_environment_are_in_no_file_and_no_output_whatever_crashes(
    copy_of_finished, launcher, judge
):
    root, said = copy_of_finished, ""
    keys = {name: f"sk-{secrets.token_hex(16)}" for name in NAMES}
    # the client's own log tells of headers too
    env = {**launcher, **keys, "JUDGE_URL": judge, "OPENAI_LOG": "debug"}

    def call(*command: str, status: int | None = None) -> str:
        nonlocal said
        done = run(*command, *CONFIG, cwd=root, env=env)
        assert status in (None, done.returncode), done.stdout + done.stderr + logs(root)
        said += done.stdout + done.stderr
        return done.stdout

    judged_by(root, "gossip")  # its replies are kept, and are what the report shows
    call("snakemake", "all", "-c2", status=0)
    replies = "".join(p.read_text() for p in root.glob("results/judge/*/*/out/judgments.jsonl"))
    assert replies.count("your key is [key]") == 6 * 80
    judged_by(root, "echo")  # it refuses, with the key in its reason
    planned = call("workflow", "status", "--paths", "evil_wrong.p42", status=0).split()
    target = next(path for path in planned if path.startswith("results/judge/"))
    call("snakemake", target, "-c1", status=1)
    assert "the endpoint refused with status 401: " in logs(root)
    call("workflow", "status", status=0)
    stage = root / "workflow/judge/judge.py"
    stage.write_text(
        stage.read_text().replace("def run(job: Job) -> Result:", f"{CRASH}\n\ndef run(job):\n    crash()")
    )
    del env[ADDRESS]  # a launcher's jobs have the code of before
    call("snakemake", target, "-c1", status=1)
    assert "openai.NotFoundError" in logs(root)
    assert "openai.NotFoundError" in call("workflow", "status", status=0)
    call("workflow", "doctor")
    call("workflow", "verify")
    call("workflow", "lineage", "evil_wrong.p42.e137")
    call("workflow", "judge-cost")
    for name, key in keys.items():
        assert key not in said, f"{name} in {line_of(key, said)}"
        for path in (p for p in root.rglob("*") if p.is_file()):
            assert key.encode() not in path.read_bytes(), f"{name} in {path}"


# a traceback through the client's own code, by an exception that nobody foresaw
CRASH = """def crash():
    import os
    import openai

    client = openai.OpenAI(base_url=os.environ["JUDGE_URL"], max_retries=0)
    client.chat.completions.create(model="gone", messages=[{"role": "user", "content": "?"}])
"""


def line_of(key: str, text: str) -> str:
    return next(line for line in text.splitlines() if key in line)
