"""Since when a rule has stood: from the commits that touched the file, not from what anyone says."""

import os
import subprocess

import pytest
import yaml

from workflow.report.history import rule_origins

BEFORE, AFTER = "2026-01-01T00:00:00+00:00", "2026-03-01T00:00:00+00:00"
DATA = "2026-02-01T00:00:00+00:00"


def claims(alpha=0.05, text="one {verdict}"):
    rule = {"test": "difference", "direction": "higher", "alpha": alpha}
    claim = {"id": "c", "text": text, "metric": "arc", "contrast": {"kind": "weights", "name": "w"}, "rule": rule}
    return {"matrix": ["a", "b"], "contrasts": [{"name": "w", "weights": {"a": 1.0, "b": -1.0}}], "claims": [claim]}


@pytest.fixture
def commit(tmp_path):
    def git(*args, date=BEFORE):
        env = os.environ | {"GIT_COMMITTER_DATE": date, "GIT_AUTHOR_DATE": date, "GIT_CONFIG_GLOBAL": os.devnull}
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        done = subprocess.run(
            ["git", *identity, *args], cwd=tmp_path, env=env, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")

    def commit(content, date):
        (tmp_path / "claims.yaml").write_text(yaml.safe_dump(content) if isinstance(content, dict) else content)
        git("add", "claims.yaml")
        git("commit", "-q", "-m", "x", date=date)
        return git("rev-parse", "HEAD")

    return commit


def origin(tmp_path, data=DATA):
    return rule_origins(tmp_path / "claims.yaml", data)["c"]


def test_a_rule_older_than_the_data(tmp_path, commit):
    first = commit(claims(), BEFORE)
    commit(claims(text="reworded {verdict}"), AFTER)
    assert (origin(tmp_path).commit, origin(tmp_path).before_data) == (first, True)
    assert origin(tmp_path).text == f"{first[:10]}, before the data"


def test_a_rule_changed_after_the_data_is_younger_than_it(tmp_path, commit):
    commit(claims(), BEFORE)
    second = commit(claims(alpha=0.1), AFTER)
    assert (origin(tmp_path).commit, origin(tmp_path).before_data) == (second, False)


def test_a_rule_that_came_back_counts_from_when_it_came_back(tmp_path, commit):
    commit(claims(), BEFORE)
    commit(claims(alpha=0.1), BEFORE)
    third = commit(claims(), AFTER)
    assert origin(tmp_path).commit == third


def test_a_changed_weight_is_a_changed_rule(tmp_path, commit):
    commit(claims(), BEFORE)
    other = claims()
    other["contrasts"][0]["weights"] = {"a": 0.5, "b": -0.5}
    second = commit(other, AFTER)
    assert origin(tmp_path).commit == second


def test_a_reworded_reason_changes_no_rule_and_another_measure_or_family_does(tmp_path, commit):
    first = commit(claims(), BEFORE)
    reasoned = claims()
    reasoned["claims"][0]["rule"]["because"] = "the margin of the field"
    commit(reasoned, AFTER)
    assert origin(tmp_path).commit == first
    for change in ({"primary": ["arc"]}, {"claims": [claims()["claims"][0] | {"measure": "change"}]}):
        other = commit(claims() | change, AFTER)
        assert origin(tmp_path).commit == other


def test_an_uncommitted_rule_and_no_history(tmp_path, commit):
    commit("not claims\n", BEFORE)
    commit(claims(), BEFORE)
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(claims(alpha=0.2)))
    assert origin(tmp_path).text == "not committed"


def test_no_repository(tmp_path):
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(claims()))
    assert origin(tmp_path).commit is None


def test_no_data_to_compare_with(tmp_path, commit):
    first = commit(claims(), BEFORE)
    assert origin(tmp_path, None).text == first[:10]
