"""Scores on the items that no model of a comparison has seen, and what the items themselves allow to be said.

EM seeds are averaged per item first: an item is a unit of its own kind, and its runs are no further items.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workflow.stats.samples import FloatArray, NotTestable, t_quantile

Run = tuple[str, int, int | None]  # condition, pipeline seed, EM seed (None before EM)
BoolArray = npt.NDArray[np.bool_]
ENOUGH = 100  # clean items under which a comparison on them is not made


@dataclass(frozen=True, eq=False)
class Items:
    """Right answers of every run to the items of one test, after EM or before it.

    Attributes:
        ids: shape (items,). correct: run -> bool (items,), in the order of ids.
        contaminated: condition -> ids in its training data; None where nobody has looked.
    """

    ids: tuple[str, ...]
    correct: Mapping[Run, BoolArray]
    contaminated: Mapping[str, frozenset[str] | None]

    def __post_init__(self) -> None:
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("an item twice in one test")
        if bad := [run for run, right in self.correct.items() if right.shape != (len(self.ids),)]:
            raise ValueError(f"{bad[0]}: not the {len(self.ids)} items of the test")

    def clean(self, conditions: Iterable[str]) -> BoolArray:
        """Which items are in the training data of none of the conditions, shape (items,)."""
        seen: set[str] = set().union(*(self.contaminated.get(c) or () for c in conditions))
        return np.array([id not in seen for id in self.ids])

    def unknown(self, conditions: Iterable[str]) -> list[str]:
        """Conditions in whose training data nobody has looked."""
        return [c for c in conditions if self.contaminated.get(c) is None]

    def accuracy(self, mask: BoolArray) -> dict[Run, float]:
        """Each run's share of right answers to the items of the mask."""
        return {run: float(right[mask].mean()) for run, right in self.correct.items()}

    def n_pipeline_seeds(self, condition: str) -> int:
        return len({p for c, p, _ in self.correct if c == condition})

    def by_replicate(self, condition: str, mask: BoolArray) -> FloatArray:
        """Share of right answers by item, shape (replicates, items): a replicate is a pipeline seed, its EM seeds
        averaged; with a single pipeline seed, an EM seed."""
        runs = {run[1:]: right[mask] for run, right in self.correct.items() if run[0] == condition}
        if self.n_pipeline_seeds(condition) == 1:
            return np.array(list(runs.values()), dtype=np.float64)
        seeds = dict.fromkeys(p for p, _ in runs)
        return np.array([np.mean([right for (p, _), right in runs.items() if p == seed], axis=0) for seed in seeds])


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
