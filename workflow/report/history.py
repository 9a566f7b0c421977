"""Since when a decision rule has stood: the first commit from which on it did not change, and whether that commit is
older than the data. A rule that was written after its verdict is no pre-registration, whatever it is called."""

import json
import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from workflow.keys import digest

RULE = ("metric", "phase", "measure", "instrument", "contrast", "rule")


@dataclass(frozen=True)
class RuleOrigin:
    """commit None: the rule as it stands is in no commit, or there is no history to look in."""

    rule: str
    commit: str | None
    date: str | None
    before_data: bool | None

    @property
    def text(self) -> str:
        if self.commit is None:
            return "not committed"
        older = {True: ", before the data", False: ", after the data", None: ""}[self.before_data]
        return f"{self.commit[:10]}{older}"


def rule_ids(text: str) -> dict[str, str]:
    """Claim -> hash (8 hex) of all that decides its verdict; a reworded sentence or reason changes nothing."""
    raw = yaml.safe_load(text)
    weights = {c["name"]: c["weights"] for c in raw.get("contrasts", [])}
    found = {}
    for claim in raw["claims"]:
        parts: dict[str, Any] = {name: claim.get(name) for name in RULE}
        parts["rule"] = {name: value for name, value in (parts["rule"] or {}).items() if name != "because"}
        named = (claim.get("contrast") or {}).get("name")
        plain = json.loads(json.dumps([parts, weights.get(named), raw.get("matrix"), raw.get("primary")]))
        found[claim["id"]] = digest("claim", plain)[:8]
    return found


def rule_origins(path: str | Path, data_start: str | None) -> dict[str, RuleOrigin]:
    """For every claim of the file as it lies there."""
    path = Path(path)
    now = rule_ids(path.read_text(encoding="utf-8"))
    since: dict[str, tuple[str, str, str]] = {}  # claim -> rule, commit, date: of the run that reaches to the newest
    for commit, date in _commits(path):
        held = _rules_at(commit, path)
        since = {
            claim: since[claim] if claim in since and since[claim][0] == rule else (rule, commit, date)
            for claim, rule in held.items()
        }
    return {claim: _origin(rule, since.get(claim), data_start) for claim, rule in now.items()}


def _origin(rule: str, found: tuple[str, str, str] | None, data_start: str | None) -> RuleOrigin:
    if found is None or found[0] != rule:
        return RuleOrigin(rule, None, None, None)
    _, commit, date = found
    older = None if data_start is None else datetime.fromisoformat(date) < datetime.fromisoformat(data_start)
    return RuleOrigin(rule, commit, date, older)


def _commits(path: Path) -> list[tuple[str, str]]:
    """(commit, date) that touched the file, oldest first; none where there is no repository."""
    listed = _git(path, "log", "--reverse", "--format=%H %cI", "--", path.name)
    return [(line.split()[0], line.split()[1]) for line in (listed or "").splitlines()]


def _rules_at(commit: str, path: Path) -> dict[str, str]:
    """Rules in that commit; none where the file was not yet, or not any more, a list of claims."""
    text = _git(path, "show", f"{commit}:./{path.name}")
    try:
        return rule_ids(text) if text else {}
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return {}


def _git(path: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(["git", *args], cwd=path.resolve().parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
