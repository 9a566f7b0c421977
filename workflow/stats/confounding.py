"""What a claim is confounded by: machines that go with its conditions, and test items in their training data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from workflow.stats.claims_rules import Case
from workflow.stats.claims_schema import region
from workflow.stats.evidence import CHANGE, BoolArray, Evidence
from workflow.stats.results import Member
from workflow.stats.samples import FloatArray, NotTestable, t_quantile

ENOUGH = 100  # clean items under which a comparison on them is not made


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
        clean: which items are clean for every condition of the claim; None without scores by item.
    """

    reasons: tuple[str, ...]
    clean: BoolArray | None = None

    @property
    def is_certain(self) -> bool:
        """Whether items are known to be contaminated, and not only unlooked at."""
        return self.clean is None or not self.clean.all()

    @property
    def clean_items(self) -> tuple[int, int] | None:
        return None if self.clean is None else (int(self.clean.sum()), len(self.clean))


def contamination_of(case: Case) -> Contamination | None:
    """None if every condition of the claim is clean, or the metric is no score of test items."""
    evidence, names = case.evidence, case.claims.conditions(case.claim)
    conditions, statement = evidence.contamination.get(case.claim.metric, (frozenset(), ""))
    if conditions & set(names):
        return Contamination((f"{statement}; no scores by item are there to leave them out",))
    items = evidence.items.get((_phase(case), *case.where[1:]))
    if items is None:
        return None
    reasons, clean = [], items.clean(names)
    if unknown := items.unknown(names):
        reasons.append(f"nobody has looked for test items in the training data of {', '.join(unknown)}")
    if not clean.all():
        contaminated = f"{int((~clean).sum())} of {len(clean)} test items"
        reasons.append(f"{contaminated} are in the training data of a condition of the claim")
    return Contamination(tuple(reasons), clean) if reasons else None


def _phase(case: Case) -> str:
    return "post_em" if case.where[0] == CHANGE else case.where[0]


def held_against_items(
    case: Case, members: Sequence[Member], contamination: Contamination
) -> tuple[tuple[Member, ...], tuple[str, ...]]:
    """Members with their interval over new items, and why the verdict is confounded; no reason if it is not.

    It is where there are no scores by item, fewer than ENOUGH clean ones, or where the clean ones alone could move the
    comparison across its margin or effect.
    """
    if contamination.clean is None:
        return tuple(members), contamination.reasons
    reasons, kept, clean = [], [], contamination.clean
    if (n := int(clean.sum())) < ENOUGH:
        reasons.append(f"{n} clean items: fewer than {ENOUGH}")
    for m in members:
        if n > 1 and m.name in case.comparisons:
            paired, new = _half_widths(case, m.name, clean)
            if new is not None:
                m = replace(m, new_items=(m.estimate.value - new, m.estimate.value + new))
            if paired > (allowed := _allowed(case, m)):
                reasons.append(f"{m.name}: the clean items alone leave ±{paired:.3g}, more than {allowed:.3g}")
        kept.append(m)
    return tuple(kept), (*contamination.reasons, *reasons) if reasons else ()


def _half_widths(case: Case, name: str, clean: BoolArray) -> tuple[float, float | None]:
    weights = case.comparisons[name]
    after = case.evidence.items[_phase(case), case.where[1], case.where[2]]
    tables = {c: after.by_replicate(c, clean) for c in weights}
    if case.where[0] == CHANGE:
        before = case.evidence.items["pre_em", case.where[1], case.where[2]]
        tables = {c: y - before.by_replicate(c, clean) for c, y in tables.items()}
    n_seeds = {after.n_pipeline_seeds(c) for c in weights}
    return half_widths(tables, weights, are_blocks=len(n_seeds) == 1 and n_seeds != {1})


def _allowed(case: Case, m: Member) -> float:
    """The margin, or the effect that was stated, or else the difference itself, in the metric's units."""
    asks, difference = region(case.claim.rule), abs(m.estimate.value)
    if asks.margin is not None and not asks.is_about_d:
        return asks.margin
    if asks.size and not asks.on_d:
        return asks.size
    return asks.size * difference / abs(m.d.value) if asks.on_d and m.d is not None and m.d.value else difference


# --- what items allow to be said: an item is a unit of its own kind, and its runs are no further items ---------------


def paired_half_width(by_item: FloatArray) -> float:
    """Half-width of the 95% interval of a mean over items, from each item's own contrast, shape (items,)."""
    return float(t_quantile(len(by_item) - 1) * by_item.std(ddof=1) / np.sqrt(len(by_item)))


def new_items_se(tables: Sequence[tuple[float, FloatArray]]) -> float:
    """Standard error of a contrast over new replicates and new items alike.

    V = V_replicate + V_item - V_(item x replicate), for a replicates x items layout; the last is in both others.

    Args:
        tables: weight and scores (replicates, items) of each part. One table of contrasts by pipeline seed where seeds
            are blocks; one table per condition where they are not.
    """
    total = sum(w * y.mean(axis=0) for w, y in tables)
    v_item = float(np.var(total, ddof=1)) / len(total)
    v_replicate = v_both = 0.0
    for w, y in tables:
        n, m = y.shape
        if n < 2:
            raise NotTestable("one replicate: no error between them")
        rest = y - y.mean(axis=0) - y.mean(axis=1, keepdims=True) + y.mean()
        v_replicate += w**2 * float(y.mean(axis=1).var(ddof=1)) / n
        v_both += w**2 * float(np.square(rest).sum()) / ((n - 1) * (m - 1)) / (n * m)
    return float(np.sqrt(max(v_replicate + v_item - v_both, v_replicate)))


def half_widths(
    tables: Mapping[str, FloatArray], weights: Mapping[str, float], are_blocks: bool
) -> tuple[float, float | None]:
    """Of a contrast at 95%: over these items, paired; over new items and replicates (None with one replicate).

    Args:
        tables: by condition (replicates, items). are_blocks: whether a row is the same pipeline seed in all of them.
    """
    paired = paired_half_width(np.asarray(sum(w * tables[c].mean(axis=0) for c, w in weights.items())))
    parts = [(w, tables[c]) for c, w in weights.items()]
    if are_blocks:
        parts = [(1.0, np.asarray(sum(w * y for w, y in parts)))]
    try:
        df = min(min(y.shape) for _, y in parts) - 1
        return paired, float(t_quantile(df)) * new_items_se(parts)
    except NotTestable:
        return paired, None
