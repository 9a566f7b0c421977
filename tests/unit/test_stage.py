"""The command line that all stages share."""

import os

import pytest

from workflow.keys import Recipe, hash_bytes
from workflow.stage import StageError, run_stage
from workflow.store import record_path


@pytest.mark.parametrize(
    ("stage", "module", "offline"), [("base", "workflow.train.base", None), ("arc", "workflow.evals.arc", "1")]
)
def test_only_the_base_model_is_fetched_and_all_else_runs_offline(
    stage, module, offline, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # so that it is put back
    monkeypatch.delenv("HF_HUB_OFFLINE")
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n")
    recipe = Recipe(stage, 1, hash_bytes(data.read_bytes(), "md5"), {})
    seen = []

    def run(job):
        """Looks."""
        seen.append(os.environ.get("HF_HUB_OFFLINE"))
        raise StageError("enough")

    command = ["--recipe", recipe.to_json(), "--placement", "{}", "--data", str(data)]
    assert run_stage(module, run, [*command, "--record", record_path(stage, "cell.p42", recipe.key)]) == 1
    assert capsys.readouterr().err == "error: enough\n"
    assert seen == [offline]
