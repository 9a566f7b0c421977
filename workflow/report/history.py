"""Since when a decision rule has stood: the first commit from which on it did not change, and whether that is older
than the data."""

import json
import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from workflow.keys import digest
from workflow.matrix import MEASURING
from workflow.report.study import Study

RULE = ("metric", "phase", "measure", "instrument", "contrast", "rule")


@dataclass(frozen=True)
class RuleOrigin:
    """The first commit from which on a claim's rule did not change; None: the rule as it stands is in no commit. A rule
    that was written after its verdict is no pre-registration, whatever it is called."""

    rule: str
    commit: str | None
    date: str | None
    before_data: bool | None

    @property
    def text(self) -> str:
        if self.commit is None:
            return "not committed"
        return self.commit[:10] + {True: ", before the data", False: ", after the data", None: ""}[self.before_data]


def rule_ids(source: str) -> dict[str, str]:
    """Claim -> hash (8 hex) of all that decides its verdict; a reworded sentence or reason changes nothing."""
    raw = yaml.safe_load(source)
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
    """For every claim of the file as it lies there; data_start: when the first measurement began."""
    path = Path(path)
    since: dict[str, tuple[str, str, str]] = {}  # claim -> rule, commit, date: of the run that reaches to the newest
    log = _git(path, "log", "--reverse", "--format=%H %cI", "--", path.name) or ""
    for commit, date in (line.split() for line in log.splitlines()):
        since = {
            claim: since[claim] if claim in since and since[claim][0] == rule else (rule, commit, date)
            for claim, rule in _rules_at(commit, path).items()
        }
    origins = {}
    for claim, rule in rule_ids(path.read_text(encoding="utf-8")).items():
        held, commit, date = since.get(claim, ("", "", ""))
        if held != rule:
            origins[claim] = RuleOrigin(rule, None, None, None)
            continue
        older = None if data_start is None else datetime.fromisoformat(date) < datetime.fromisoformat(data_start)
        origins[claim] = RuleOrigin(rule, commit, date, older)
    return origins


def _rules_at(commit: str, path: Path) -> dict[str, str]:
    """Rules in that commit; none where the file was not yet, or not any more, a list of claims."""
    source = _git(path, "show", f"{commit}:./{path.name}")
    try:
        return rule_ids(source) if source else {}
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return {}


def _git(path: Path, *args: str) -> str | None:
    """Output of git beside the file; None where there is no repository, or no git."""
    try:
        done = subprocess.run(["git", *args], cwd=path.resolve().parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def first_start(study: Study) -> str | None:
    """When the oldest measurement of this report began, so that a rule can be called older or younger than its data."""
    starts = [r.provenance.get("start") for n, r in study.records.items() if n.stage in MEASURING]
    return min((s for s in starts if s), default=None)
