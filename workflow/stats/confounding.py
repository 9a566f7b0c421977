"""What a claim is confounded by: machines that go with its conditions, and test items in their training data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from workflow.stats.claims_rules import comparisons_of, conditions_of
from workflow.stats.claims_schema import Claim, Claims
from workflow.stats.evidence import CHANGE, Evidence, Where
from workflow.stats.items import ENOUGH, contrast_by_item, new_items_se, paired_half_width
from workflow.stats.results import Member
from workflow.stats.samples import FloatArray, NotTestable, t_quantile


def aliased(values: Mapping[str, frozenset[str]]) -> bool:
    """Whether two conditions share no machine (or environment, or code), so that it cannot be told from them."""
    known = [machines for machines in values.values() if machines]
    return any(not a & b for i, a in enumerate(known) for b in known[:i])


def aliasing(names: Sequence[str], evidence: Evidence) -> list[str]:
    """Fields whose values go with the conditions."""
    reasons = []
    for field, by_condition in evidence.machines.items():
        here = {name: by_condition[name] for name in names if name in by_condition}
        if aliased(here):
            values = "; ".join(f"{', '.join(sorted(values))} in {name}" for name, values in here.items() if values)
            reasons.append(f"{field} goes with the condition: {values}")
    return reasons


@dataclass(frozen=True)
class Contamination:
    """What is known of test items in the training data of a claim's conditions.

    Attributes:
        clean: (clean for every condition of the claim, all), where there are scores by item.
        evidence: the scores on clean items alone, where there are at least two.
        half_widths: comparison -> 95% half-widths over items, and over new items and replicates.
    """

    reasons: tuple[str, ...]
    clean: tuple[int, int] | None = None
    evidence: Evidence | None = None
    half_widths: Mapping[str, tuple[float, float | None]] | None = None

    @property
    def is_certain(self) -> bool:
        """Whether items are known to be contaminated, and not only unlooked at."""
        return self.clean is None or self.clean[0] < self.clean[1]


def contamination_of(claim: Claim, claims: Claims, evidence: Evidence, where: Where) -> Contamination | None:
    """None if every condition of the claim is clean, or the metric is no score of test items."""
    names = conditions_of(claim, claims)
    conditions, statement = evidence.contamination.get(claim.metric, (frozenset(), ""))
    if conditions & set(names):
        return Contamination((f"{statement}; no scores by item are there to leave them out",))
    items = evidence.items.get(("post_em" if where[0] == CHANGE else where[0], *where[1:]))
    if items is None:
        return None
    unknown = items.unknown(names)
    reasons = [f"nobody has looked for test items in the training data of {', '.join(unknown)}"] if unknown else []
    mask = items.clean(names)
    n_clean, n = int(mask.sum()), len(mask)
    if n_clean == n:
        return Contamination(tuple(reasons), (n, n)) if reasons else None
    reasons.append(f"{n - n_clean} of {n} test items are in the training data of a condition of the claim")
    if n_clean < 2:
        return Contamination(tuple(reasons), (n_clean, n))
    clean = evidence.on_clean_items(claim.metric, where[2], names)
    return Contamination(tuple(reasons), (n_clean, n), clean, _half_widths(claim, claims, evidence, where, mask))


def _half_widths(
    claim: Claim, claims: Claims, evidence: Evidence, where: Where, mask: npt.NDArray[np.bool_]
) -> dict[str, tuple[float, float | None]]:
    after = evidence.items["post_em" if where[0] == CHANGE else where[0], where[1], where[2]]
    before = evidence.items["pre_em", where[1], where[2]] if where[0] == CHANGE else None
    half_widths = {}
    for name, weights in comparisons_of(claim, claims).items():
        means = {c: after.means(c, mask) for c in weights}
        replicates = {c: after.replicates(c, mask) for c in weights}
        if before is not None:
            means = {c: y - before.means(c, mask) for c, y in means.items()}
            replicates = {c: y - before.means(c, mask).mean(axis=0) for c, y in replicates.items()}
        paired = paired_half_width(contrast_by_item(means, weights))
        half_widths[name] = paired, _new_items_half_width(means, replicates, weights)
    return half_widths


def _new_items_half_width(
    means: Mapping[str, FloatArray], replicates: Mapping[str, FloatArray], weights: Mapping[str, float]
) -> float | None:
    """At 95%; pipeline seeds are blocks where every condition has the same number of two or more."""
    rows = {y.shape[0] for y in means.values()}
    if len(rows) == 1 and rows != {1}:
        tables = [(1.0, np.asarray(sum(w * means[c] for c, w in weights.items())))]
    else:
        tables = [(w, replicates[c]) for c, w in weights.items()]
    df = min(min(y.shape) for _, y in tables) - 1
    try:
        return float(t_quantile(df)) * new_items_se(tables)
    except NotTestable:
        return None


def held_against_items(
    claim: Claim, members: Sequence[Member], contamination: Contamination
) -> tuple[tuple[Member, ...], tuple[str, ...]]:
    """Members with their interval over new items, and why the verdict is confounded; no reason if it is not.

    It is where there are no scores by item, fewer than ENOUGH clean ones, or where the clean ones alone could move the
    comparison across its margin or effect.
    """
    reasons = []
    if contamination.clean is not None and contamination.clean[0] < ENOUGH:
        reasons.append(f"{contamination.clean[0]} clean items: fewer than {ENOUGH}")
    kept = []
    for m in members:
        paired, new = (contamination.half_widths or {}).get(m.name, (None, None))
        if m.estimate is not None and new is not None:
            m = replace(m, new_items=(m.estimate.value - new, m.estimate.value + new))
        kept.append(m)
        if paired is not None and paired > (allowed := _allowed(claim, m)):
            reasons.append(f"{m.name}: the clean items alone leave ±{paired:.3g}, more than {allowed:.3g}")
    is_confounded = contamination.clean is None or bool(reasons)
    return tuple(kept), (*contamination.reasons, *reasons) if is_confounded else ()


def _allowed(claim: Claim, m: Member) -> float:
    """The margin, or the effect that was stated, or else the difference itself, in the metric's units."""
    margin, raw, d = (getattr(claim.rule, name, None) for name in ("margin", "effect_raw", "effect"))
    assert m.estimate is not None  # only comparisons have scores by item
    if margin is not None and claim.rule.test != "size":
        return float(margin)
    if raw is not None:
        return float(raw)
    if d is not None and m.d is not None and m.d.value:
        return float(d) * abs(m.estimate.value / m.d.value)
    return abs(m.estimate.value)
