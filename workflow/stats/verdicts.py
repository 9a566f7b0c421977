"""The region rules: where an interval lies decides a verdict, and nothing else does.

[L, U] is the interval at level 1 - alpha of the test's family, in the direction of the claim; x >= 0 the size that the
claim states, m a margin of equivalence.
    difference   supported: L >= x          opposite: U < 0            size refuted: U < x
                 difference shown, size not: 0 < L < x <= U             undetermined: else
    equivalence  equivalent: the 1 - 2 alpha interval within +-m, "and different" if [L, U] excludes 0
                 equivalence refuted: [L, U] wholly outside +-m         undetermined: else
Verdicts are arrays of the shape of the intervals; `settle` makes one of the corners that printed digits allow.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from workflow.stats.rounding import UNDETERMINED
from workflow.stats.tests import Estimate

Verdict = Literal[
    "supported",
    "difference shown, size not",
    "size refuted",
    "opposite",
    "equivalent",
    "equivalent and different",
    "equivalence refuted",
    "refuted",
    "detected only in the named pairs",
    "conditional",
    "confounded",
    "undetermined",
    "undetermined at this precision",
    "unverifiable",
]
Direction = Literal["higher", "lower", "either"]
Scope = Literal["checkpoints", "conditions"]
Strength = Literal["none", "preliminary", "moderate", "strong"]
Words = npt.NDArray[np.str_]
Ends = tuple[Any, Any]

HOLDS = ("supported", "equivalent", "equivalent and different")  # what a claim of its kind asks for
AGAINST = ("opposite", "size refuted", "equivalence refuted", "refuted")
WEAKER = {"equivalent": "equivalent and different", "difference shown, size not": "supported"}


def _words(choices: list[tuple[Any, str]], otherwise: str) -> Words:
    conditions = [np.asarray(where) for where, _ in choices]
    return np.select(conditions, [np.array(word, dtype="U40") for _, word in choices], np.array(otherwise, "U40"))


def difference(interval: Ends, direction: Direction = "higher", x: float = 0.0, size: Ends | None = None) -> Words:
    """size: the interval that x is held against, where it is of another scale (d) than the difference itself."""
    if not (x >= 0 and np.isfinite(x)):
        raise ValueError(f"effect {x}: a stated size is not negative")
    low, high = _directed(interval, direction)
    size_low, size_high = _directed(interval if size is None else size, direction)
    shown = low > 0
    choices = [(shown & (size_low >= x), "supported"), (high < 0, "opposite")]
    if x > 0:
        choices += [(size_high < x, "size refuted"), (shown, "difference shown, size not")]
    return _words(choices, "undetermined")


def _directed(interval: Ends, direction: Direction) -> Ends:
    """The interval with the claim's direction positive; `either`: of the absolute value, from below 0 if it holds 0."""
    low, high = (np.asarray(end) for end in interval)
    if direction == "higher":
        return low, high
    if direction == "lower":
        return -high, -low
    return np.maximum(low, -high), np.maximum(np.abs(low), np.abs(high))


def equivalence(inner: Ends, outer: Ends, margin: float) -> Words:
    """inner: the 1 - 2 alpha interval; outer: that of the family's level."""
    within = (np.asarray(inner[0]) > -margin) & (np.asarray(inner[1]) < margin)
    low, high = (np.asarray(end) for end in outer)
    differs = (low > 0) | (high < 0)
    outside = (low >= margin) | (high <= -margin)
    return _words(
        [(within & differs, "equivalent and different"), (within, "equivalent"), (outside, "equivalence refuted")],
        "undetermined",
    )


def settle(words: Words) -> str:
    """One verdict of all corners: what they share, or undetermined at this precision where they share nothing."""
    kinds = set(np.unique(words).tolist())
    if len(kinds) == 1:
        return str(kinds.pop())
    return next((weaker for weaker, stronger in WEAKER.items() if kinds == {weaker, stronger}), UNDETERMINED)


def tipping_sd(estimate: Estimate, distance: Any, alpha: float) -> float | None:
    """SD between checkpoints above which a verdict from one checkpoint per condition no longer holds.

    distance: from the estimate to the bound that it has to keep clear of. With two conditions
    s* = sqrt((distance / t)^2 - SE^2) / sqrt(2); None where the verdict does not hold as it is.
    """
    width = float(np.ravel(estimate.interval(alpha)[1] - estimate.value)[0])
    se = float(np.ravel(estimate.se)[0])
    spare = (float(np.ravel(distance)[0]) / (width / se)) ** 2 - se**2
    if spare < 0 or float(np.ravel(distance)[0]) < 0:
        return None
    return float(np.sqrt(spare / estimate.n_weights))


def strength_of(n_pipeline_seeds: int, separate_agrees: bool) -> Strength:
    """How strongly a verdict speaks of conditions, by the number of pipeline seeds; held down where a test with each
    contrast's own error does not give the same verdict."""
    if n_pipeline_seeds < 2:
        return "none"
    if n_pipeline_seeds == 2 or not separate_agrees:
        return "preliminary"
    return "moderate" if n_pipeline_seeds < 5 else "strong"
