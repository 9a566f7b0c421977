"""The region rules: where an interval lies decides a verdict, and nothing else does.

[L, U] is the interval at level 1 - alpha of the test's family, in the direction of the claim; x >= 0 the size that the
claim states, m a margin of equivalence.
    difference   supported: L >= x          opposite: U < 0            size refuted: U < x
                 difference shown, size not: 0 < L < x <= U             undetermined: else
    equivalence  equivalent: the 1 - 2 alpha interval within +-m, "and different" if [L, U] excludes 0
                 equivalence refuted: [L, U] wholly outside +-m         undetermined: else
Verdicts are arrays of the shape of the intervals; `settle` makes one of the corners that printed digits allow.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from workflow.stats.rounding import UNDETERMINED
from workflow.stats.tests import Ends, Estimate

Direction = Literal["higher", "lower", "either"]
Strength = Literal["none", "preliminary", "moderate", "strong"]
Words = npt.NDArray[np.str_]

EQUIVALENT = ("equivalent", "equivalent and different")
HOLDS = ("supported", *EQUIVALENT)  # what a claim of its kind asks for
AGAINST = ("opposite", "size refuted", "equivalence refuted", "refuted")
OPEN = ("difference shown, size not", "detected only in the named pairs", "conditional", "confounded", "undetermined")
VERDICTS = (*HOLDS, *AGAINST, *OPEN, UNDETERMINED, "unverifiable")
WEAKER = {"equivalent": "equivalent and different", "difference shown, size not": "supported"}


@dataclass(frozen=True)
class Region:
    """What a rule asks of an estimate.

    Attributes:
        direction: of the difference; None for equivalence alone.
        size: the size that is stated, 0 if none. margin: of equivalence, around zero; of d, around +-size.
        on_d: whether size is a standardised difference. alpha: the level before any correction.
    """

    direction: Direction | None
    size: float = 0.0
    margin: float | None = None
    on_d: bool = False
    alpha: float = 0.05

    @property
    def is_about_d(self) -> bool:
        return self.direction is None and self.on_d

    def sign(self, value: float) -> float:
        """Turns the direction of the claim, or of the value where the claim has none, positive."""
        return -1.0 if self.direction == "lower" or (self.direction != "higher" and value < 0) else 1.0


def verdict(asks: Region, e: Estimate, alpha: float) -> Words:
    """The verdict of a comparison in every row of its estimate; alpha: the level of its family."""
    decides = e.effect if asks.is_about_d else e
    inner, outer = decides.interval(2 * asks.alpha), decides.interval(alpha)
    if asks.is_about_d:
        assert asks.margin is not None
        words = equivalence(_about(inner, asks.size), _about(outer, asks.size), asks.margin)
        return _words({"supported": _is_equivalent(words), "size refuted": words == "equivalence refuted"})
    alike = None if asks.margin is None else equivalence(inner, outer, asks.margin)
    if asks.direction is None:
        assert alike is not None
        return alike
    words = difference(outer, asks.direction, asks.size, e.effect.interval(alpha) if asks.on_d else outer)
    if alike is not None:
        words = np.where((words == "undetermined") & _is_equivalent(alike), alike, words)
    return words


def _words(choices: dict[str, Any]) -> Words:
    """The first word whose condition holds, else undetermined."""
    return np.select(list(choices.values()), [np.array(word, "U40") for word in choices], np.array("undetermined"))


def difference(interval: Ends, direction: Direction, x: float, size: Ends) -> Words:
    """size: the interval that x is held against; of another scale (d) than that of the difference where x is a d."""
    low, high = _directed(interval, direction)
    size_low, size_high = _directed(size, direction)
    shown = low > 0
    return _words(
        {
            "supported": shown & (size_low >= x),
            "opposite": high < 0,
            "size refuted": (size_high < x) & (x > 0),
            "difference shown, size not": shown,
        }
    )


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
    return _words(
        {
            "equivalent and different": within & ((low > 0) | (high < 0)),
            "equivalent": within,
            "equivalence refuted": (low >= margin) | (high <= -margin),
        }
    )


def _is_equivalent(words: Words) -> npt.NDArray[np.bool_]:
    return np.isin(words, EQUIVALENT)


def _about(interval: Ends, size: float) -> Ends:
    """The interval of |d| - size."""
    low, high = interval
    inner = np.where((low <= 0) & (high >= 0), 0.0, np.minimum(np.abs(low), np.abs(high)))
    return inner - size, np.maximum(np.abs(low), np.abs(high)) - size


def settle(words: Words) -> str:
    """One verdict of all corners: what they share, or undetermined at this precision where they share nothing."""
    kinds = set(np.unique(words).tolist())
    if len(kinds) == 1:
        return str(kinds.pop())
    return next((weaker for weaker, stronger in WEAKER.items() if kinds == {weaker, stronger}), UNDETERMINED)


# --- what stands behind a verdict -------------------------------------------------------------------------------------


def bound(asks: Region, verdict: str) -> float | None:
    """The edge of the region that decided, in the direction of the claim; None where nothing is decided."""
    if verdict in ("supported", "size refuted"):
        return asks.size
    if verdict in (*EQUIVALENT, "equivalence refuted"):
        return asks.margin
    return 0.0 if verdict in ("difference shown, size not", "opposite") else None


def p_decided(asks: Region, verdict: str, e: Estimate) -> Any:
    """p of the hypothesis on the edge of the region; None where the size was held against d, which has no t."""
    if verdict in EQUIVALENT and asks.margin is not None:
        return e.tost_p(asks.margin)
    if asks.on_d:
        return None
    return e.p(asks.sign(float(np.ravel(e.value)[0])) * (bound(asks, verdict) or 0.0))


def tipping_sd(e: Estimate, distance: float, alpha: float) -> float | None:
    """SD between checkpoints above which a verdict from one checkpoint per condition no longer holds.

    distance: from the estimate to the bound that it has to keep clear of. With two conditions
    s* = sqrt((distance / t)^2 - SE^2) / sqrt(2); None where the verdict does not hold as it is.
    """
    width = float(np.ravel(e.interval(alpha)[1] - e.value)[0])
    se = float(np.ravel(e.se)[0])
    spare = (distance / (width / se)) ** 2 - se**2
    return None if spare < 0 else float(np.sqrt(spare / e.n_weights))


def strength_of(n_pipeline_seeds: int, separate_agrees: bool) -> Strength:
    """How strongly a verdict speaks of conditions, by the number of pipeline seeds; held down where a test with each
    contrast's own error does not give the same verdict."""
    if n_pipeline_seeds < 2:
        return "none"
    if n_pipeline_seeds == 2 or not separate_agrees:
        return "preliminary"
    return "moderate" if n_pipeline_seeds < 5 else "strong"
