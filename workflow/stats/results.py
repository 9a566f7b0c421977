"""What a claim comes out as: its members, each with the interval that decided it, and the result of the whole."""

from dataclasses import dataclass

from workflow.stats.rounding import Range
from workflow.stats.verdicts import Strength


@dataclass(frozen=True)
class Member:
    """One comparison of a claim.

    Attributes:
        estimate: in the metric's own units. interval: the one that decided, at interval_level, of `decided_on`.
        p: of no difference; p_adjusted counts its family; p_decided: of the boundary that decided, where it has one.
        d: standardised by `standardiser`, with its interval at the same level.
        tipping_sd: SD between checkpoints above which the verdict no longer holds; for one checkpoint per condition.
        separate_verdict: by the contrast's own error, pipeline seed by pipeline seed.
        level: the same comparison of levels, beside a comparison of changes.
        new_items: interval over new items of the kind, where there are scores by item; never the one that decided.
    """

    name: str
    verdict: str
    reason: str
    estimate: Range
    interval: tuple[float, float] | None = None
    interval_level: float | None = None
    decided_on: str = ""
    t: Range | None = None
    p: Range | None = None
    p_adjusted: Range | None = None
    p_decided: Range | None = None
    d: Range | None = None
    d_interval: tuple[float, float] | None = None
    standardiser: str = ""
    method: str = ""
    tipping_sd: float | None = None
    separate_verdict: str | None = None
    level: Range | None = None
    new_items: tuple[float, float] | None = None
    reading: str = ""


@dataclass(frozen=True)
class ClaimResult:
    """A claim's verdict and sentence, and what they rest on.

    Attributes:
        scope: what the verdict is about: these checkpoints, or the conditions (two pipeline seeds or more).
        confounded_by: what else differs between the conditions, or what their scores are contaminated with.
        strength: how strongly it speaks of the conditions; declared_strength: how strongly the original put it.
        on_all_items, on_clean_items: the verdict of each, where test items were in the training data; else empty.
        clean_items: (clean for every condition of the claim, all), where scores by item are there.
        tipping_sd: SD between checkpoints above which the verdict no longer holds, in the metric's units.
        exploratory: whether the metric is no primary one.
    """

    id: str
    finding: int | None
    said: str
    metric: str
    phase: str
    measure: str
    verdict: str
    scope: str
    confounded_by: tuple[str, ...]
    strength: Strength
    declared_strength: str
    exploratory: bool
    reason: str
    sentence: str
    label: str
    unit: str
    n_by_condition: tuple[tuple[str, int], ...]
    n_pipeline_seeds: int
    tipping_sd: float | None
    on_all_items: str
    on_clean_items: str
    clean_items: tuple[int, int] | None
    members: tuple[Member, ...]
    rule: str
    rests_on: tuple[str, ...]
