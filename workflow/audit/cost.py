"""What is missing, in GPU-hours: the median of what each stage took before."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from workflow.matrix import Node
from workflow.store import Summary


class Facts(NamedTuple):
    """What a record says about cost; None: it does not say."""

    seconds: float | None = None
    gpu_seconds: float | None = None

    @classmethod
    def of(cls, summary: Summary) -> "Facts":
        seconds = summary.observed.get("seconds")
        gpu_seconds = summary.observed.get("gpu_seconds")
        if gpu_seconds is None and seconds is not None:
            gpu_seconds = seconds * len(summary.provenance.get("gpu") or ())
        return cls(seconds, gpu_seconds)


@dataclass(frozen=True)
class Price:
    """Medians of one stage over `records` past records; `planned` says whether they are of the plan's own keys."""

    seconds: float
    gpu_seconds: float | None
    records: int
    planned: bool


@dataclass
class Cost:
    """Jobs and what they take. `seconds`: how long the jobs run, added up.

    `unpriced` counts, by stage, the jobs without a past record; their cost is in none of the sums.
    """

    jobs: int = 0
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    unpriced: Counter[str] = field(default_factory=Counter)

    @property
    def gpu_hours(self) -> float:
        return self.gpu_seconds / 3600

    def __str__(self) -> str:
        jobs = f"{self.jobs} job{'' if self.jobs == 1 else 's'}"
        told = f"{jobs}, {self.gpu_hours:.2f} GPU-hours, {self.seconds:.0f} job-seconds"
        if self.unpriced:
            which = ", ".join(f"{n} {stage}" for stage, n in self.unpriced.items())
            told += f" (not counted, for want of a past record: {which})"
        return told

    def to_json(self) -> dict[str, Any]:
        return {
            "jobs": self.jobs,
            "gpu_hours": round(self.gpu_hours, 4),
            "seconds": round(self.seconds, 3),
            "unpriced": dict(self.unpriced),
        }


@dataclass
class Prices:
    """Past records by stage: those of the plan, and those under other keys, used where the plan has none."""

    planned: dict[str, list[Facts]] = field(default_factory=dict)
    other: dict[str, list[Facts]] = field(default_factory=dict)

    def add(self, stage: str, facts: Facts, planned: bool) -> None:
        (self.planned if planned else self.other).setdefault(stage, []).append(facts)

    def of(self, stage: str) -> Price | None:
        for planned, found in ((True, self.planned.get(stage, [])), (False, self.other.get(stage, []))):
            seconds = [f.seconds for f in found if f.seconds is not None]
            gpu = [f.gpu_seconds for f in found if f.gpu_seconds is not None]
            if seconds:
                return Price(median(seconds), median(gpu) if gpu else None, len(seconds), planned)
        return None

    def cost(self, nodes: Iterable[Node]) -> Cost:
        """What making these nodes takes."""
        total = Cost()
        for stage, number in Counter(node.stage for node in nodes).items():
            total.jobs += number
            price = self.of(stage)
            if price is None:
                total.unpriced[stage] = number
                continue
            total.seconds += number * price.seconds
            total.gpu_seconds += number * (price.gpu_seconds or 0.0)
        return total
