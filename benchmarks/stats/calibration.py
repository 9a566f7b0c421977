"""How often the rules of workflow/stats err, by simulation: false positives, coverage, power of equivalence.

    python -m benchmarks.stats.calibration --out docs/calibration.md

Rates are by the closed forms, vectorised over matrices; the last section holds them against the library's path, which
the report takes. Scale: one unit is the SD between EM seeds of one checkpoint (about 1.8 points of alignment), unless a
section says otherwise. A rate comes with its 95% Wilson interval over the simulated matrices.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from workflow.stats import blocked
from workflow.stats.contrasts import estimate, pair
from workflow.stats.power import minimum_detectable
from workflow.stats.samples import EM_SEED, PIPELINE_SEED, sample

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
PairP = Callable[[FloatArray], FloatArray]
ALPHA = 0.05
CONDITIONS = 5
EM_SEEDS = 10
PAIRS = list(combinations(range(CONDITIONS), 2))
SD_POINTS = 1.82  # median between-seed SD of alignment in the published table
SD_ALIGNMENT = np.array([1.57, 2.11, 1.94, 1.82, 1.24]) / SD_POINTS  # its five SDs, in units of their median
SD_ARC = np.array([4.19, 1.54, 0.84, 2.24, 2.10]) / 2.10


@dataclass(frozen=True)
class Rate:
    """A share of simulated matrices, with its Monte-Carlo interval."""

    hits: int
    n: int

    @classmethod
    def of(cls, hits: npt.ArrayLike) -> "Rate":
        array = np.asarray(hits, dtype=bool)
        return cls(int(np.count_nonzero(array)), int(array.size))

    def __str__(self) -> str:
        low, high = proportion_confint(self.hits, self.n, method="wilson")
        return f"{100 * self.hits / self.n:.1f}% ({100 * low:.1f}-{100 * high:.1f})"


@dataclass(frozen=True)
class Simulation:
    """A generator and the number of matrices per line."""

    rng: np.random.Generator
    n: int

    def matrices(
        self,
        pipelines: int = 1,
        em_seeds: int = EM_SEEDS,
        sd_pipeline: float = 0.0,
        sd_em: float | FloatArray = 1.0,
        means: Sequence[float] = (0.0,) * CONDITIONS,
        heavy_tails: bool = False,
    ) -> FloatArray:
        """Scores, shape (n, conditions, pipelines, em_seeds)."""
        shape = (self.n, CONDITIONS, pipelines, em_seeds)
        checkpoints = self.rng.normal(0, 1, shape[:3])[..., None] * sd_pipeline
        noise = self.rng.standard_t(3, shape) / np.sqrt(3) if heavy_tails else self.rng.normal(0, 1, shape)
        sd = np.broadcast_to(np.asarray(sd_em, dtype=np.float64), (CONDITIONS,))[None, :, None, None]
        return np.asarray(np.asarray(means)[None, :, None, None] + checkpoints + sd * noise)


def pair_p(samples: FloatArray) -> FloatArray:
    """Welch p of the ten pairs; samples (n, conditions, replicates) -> (n, 10)."""
    tests = [stats.ttest_ind(samples[:, a], samples[:, b], axis=1, equal_var=False) for a, b in PAIRS]
    return np.stack([test.pvalue for test in tests], axis=1)


def blocked_pair_p(means: FloatArray) -> FloatArray:
    """p of the ten pairs by the error that decides; means of checkpoints (n, conditions, seeds) -> (n, 10)."""
    return np.stack([blocked.closed_form(means, _pair_weights(a, b)).p() for a, b in PAIRS], axis=1)


def pooled_p(means: FloatArray, a: int = 0, b: int = 1) -> FloatArray:
    """p of one pair by the pooled error of condition x seed alone."""
    _, c, p = means.shape
    df = (c - 1) * (p - 1)
    ms = np.square(blocked.residuals_of(means)).sum(axis=(1, 2)) / df
    t = (means[:, a].mean(axis=1) - means[:, b].mean(axis=1)) / np.sqrt(2 * ms / p)
    return np.asarray(2 * stats.t.sf(np.abs(t), df))


def hc2_p(means: FloatArray, a: int = 0, b: int = 1) -> FloatArray:
    """p of one pair by the larger of pooled and HC2 error: what would decide in place of HC3."""
    _, c, p = means.shape
    squares, leverage = np.square(blocked.residuals_of(means)), (c + p - 1) / (c * p)
    hc2 = squares[:, [a, b]].sum(axis=(1, 2)) / (p**2 * (1 - leverage))
    df = (c - 1) * (p - 1)
    se = np.sqrt(np.maximum(hc2, 2 * squares.sum(axis=(1, 2)) / (df * p)))
    return np.asarray(2 * stats.t.sf(np.abs(means[:, a].mean(axis=1) - means[:, b].mean(axis=1)) / se, df))


def nested_p(means: FloatArray, a: int = 0, b: int = 1) -> FloatArray:
    """p of one pair by the spread between checkpoints within conditions, as if seeds were not shared."""
    _, c, p = means.shape
    ms, df = means.var(axis=2, ddof=1).mean(axis=1), c * (p - 1)
    t = (means[:, a].mean(axis=1) - means[:, b].mean(axis=1)) / np.sqrt(2 * ms / p)
    return np.asarray(2 * stats.t.sf(np.abs(t), df))


def separate_p(means: FloatArray, a: int = 0, b: int = 1) -> FloatArray:
    """p of one pair from each seed's own difference."""
    return np.asarray(stats.ttest_rel(means[:, a], means[:, b], axis=1).pvalue)


def _pair_weights(a: int, b: int) -> FloatArray:
    return np.eye(CONDITIONS)[a] - np.eye(CONDITIONS)[b]


def holm_rejects(p: FloatArray, alpha: float = ALPHA) -> BoolArray:
    """Holm's step-down by row; p (n, tests) -> (n, tests). statsmodels takes one row at a time."""
    order = np.argsort(p, axis=1)
    steps = alpha / np.arange(p.shape[1], 0, -1)
    passed = np.logical_and.accumulate(np.take_along_axis(p, order, axis=1) <= steps, axis=1)
    rejects = np.zeros(p.shape, dtype=bool)
    np.put_along_axis(rejects, order, passed, axis=1)
    return rejects


def familywise(
    samples: FloatArray, true_nulls: Sequence[int] = tuple(range(len(PAIRS))), pairs: PairP = pair_p
) -> list[str]:
    """Share of matrices with a false positive: no correction, the published rule, Holm."""
    p = pairs(samples)
    rules = (p < ALPHA, p < ALPHA / len(PAIRS), holm_rejects(p))
    return [str(Rate.of(rejects[:, list(true_nulls)].any(axis=1))) for rejects in rules]


def right_unit(sim: Simulation) -> list[list[str]]:
    shifted = (0.0, 0.0, 0.0, 0.0, 5.0)
    nulls = [i for i, pair in enumerate(PAIRS) if 4 not in pair]
    flat = (sim.n, CONDITIONS, EM_SEEDS)
    cases: list[tuple[str, FloatArray, Sequence[int]]] = [
        ("no effect, equal SDs", sim.matrices().reshape(flat), range(10)),
        ("no effect, SDs as published for alignment", sim.matrices(sd_em=SD_ALIGNMENT).reshape(flat), range(10)),
        ("no effect, SDs as published for ARC (1 : 5)", sim.matrices(sd_em=SD_ARC).reshape(flat), range(10)),
        ("no effect, heavy tails (t, 3 df)", sim.matrices(heavy_tails=True).reshape(flat), range(10)),
        ("one condition 5 SDs away, its 6 true nulls left", sim.matrices(means=shifted).reshape(flat), nulls),
    ]
    rows = [[name, *familywise(data, true_nulls)] for name, data, true_nulls in cases]
    for pipelines in (3, 5, 10):
        data = sim.matrices(pipelines, sd_pipeline=1.0).mean(axis=3)
        rates = familywise(data, pairs=blocked_pair_p)
        rows.append([f"no effect, {pipelines} pipeline seeds as blocks, checkpoint SD 1", *rates])
    return rows


def wrong_unit(sim: Simulation) -> list[list[str]]:
    rows = []
    for ratio in (0.0, 0.25, 0.5, 1.0, 2.0, 5.0):
        one = sim.matrices(sd_pipeline=ratio).reshape(sim.n, CONDITIONS, -1)
        three = sim.matrices(3, sd_pipeline=ratio)
        pooled = familywise(three.reshape(sim.n, CONDITIONS, -1))[1]
        right = familywise(three.mean(axis=3), pairs=blocked_pair_p)[1]
        rows.append([f"{ratio:g}", *familywise(one), pooled, right])
    return rows


def coverage(sim: Simulation) -> list[list[str]]:
    """Intervals that should hold the truth in 95% of matrices."""
    t9 = stats.t.ppf(0.975, EM_SEEDS - 1)
    rows = []
    for name, sd in (("equal SDs", np.ones(CONDITIONS)), ("SDs as published for ARC", SD_ARC)):
        x = sim.matrices(sd_em=sd)[:, :, 0, :]
        m, s = x.mean(axis=2), x.std(axis=2, ddof=1)
        rows.append([f"mean of a condition, {name}", str(Rate.of(np.abs(m[:, 0]) < t9 * s[:, 0] / np.sqrt(EM_SEEDS)))])
        rows.append([f"difference of two, {name}", str(Rate.of(np.abs(_welch_t(m, s, 0, 2)) < _t_limit(s, 0, 2)))])
        w = np.array([0.0, 1.0, -1.0, -1.0, 1.0])
        v = np.square(w * s) / EM_SEEDS
        df = v.sum(axis=1) ** 2 / (np.square(v) / (EM_SEEDS - 1)).sum(axis=1)
        inside = np.abs(m @ w) < stats.t.ppf(0.975, df) * np.sqrt(v.sum(axis=1))
        rows.append([f"interaction contrast, {name}", str(Rate.of(inside))])
        extra = sim.rng.normal(0, sd[0], sim.n)
        rows.append(
            [
                f"prediction of one more seed, {name}",
                str(Rate.of(np.abs(extra - m[:, 0]) < t9 * s[:, 0] * np.sqrt(1.1))),
            ]
        )
    for delta in (0.0, 0.5, 1.5, 3.0):
        x = sim.matrices(means=(delta, 0, 0, 0, 0))[:, :, 0, :]
        m, s = x.mean(axis=2), x.std(axis=2, ddof=1)
        tail = stats.nct.cdf(_welch_t(m, s, 0, 1), 2 * EM_SEEDS - 2, delta * np.sqrt(EM_SEEDS / 2))
        rows.append([f"standardised difference, true value {delta:g}", str(Rate.of((tail > 0.025) & (tail < 0.975)))])
    for ratio in (0.5, 1.0, 2.0):
        x = sim.matrices(sd_pipeline=ratio)[:, :, 0, :]
        m, s = x.mean(axis=2), x.std(axis=2, ddof=1)
        inside = np.abs(_welch_t(m, s, 0, 1)) < _t_limit(s, 0, 1)
        name = f"difference of two conditions from one checkpoint each, checkpoint SD {ratio:g}"
        rows.append([name, str(Rate.of(inside))])
    return rows


def equivalence(sim: Simulation) -> list[list[str]]:
    """Share of matrices in which two one-sided tests pass, SD as published for alignment."""
    rows = []
    for margin in (5.0, 3.0):
        for true in (0.0, 1.0, 2.0, margin):
            x = sim.matrices(sd_em=SD_POINTS, means=(true, 0, 0, 0, 0))[:, :, 0, :]
            m, s = x.mean(axis=2), x.std(axis=2, ddof=1)
            p = np.stack([_tost_p(m, s, a, b, margin) for a, b in PAIRS], axis=1)
            everywhere = str(Rate.of((p < ALPHA).all(axis=1))) if true == 0 else "-"
            rows.append([f"{margin:g}", f"{true:g}", str(Rate.of(p[:, 0] < ALPHA)), everywhere])
    return rows


def power(sim: Simulation) -> list[list[str]]:
    """Share of matrices in which a pair of that true difference is found."""
    rows = []
    for points in (1.0, 2.0, 3.0, 4.0):
        p = pair_p(sim.matrices(sd_em=SD_POINTS, means=(points, 0, 0, 0, 0))[:, :, 0, :])
        rejects = (p < ALPHA, p < ALPHA / len(PAIRS), holm_rejects(p))
        rows.append([f"{points:g}", *(str(Rate.of(r[:, 0])) for r in rejects)])
    return rows


DESIGNS = ((2, 10), (3, 1), (3, 3), (3, 10), (5, 2))


def components(
    sim: Simulation,
    pipelines: int,
    ems: int | Sequence[int],
    sd_block: float = 2.0,
    shift: float = 0.0,
    scale: FloatArray | None = None,
) -> FloatArray:
    """Means of checkpoints (n, conditions, seeds): SDs 2 between seeds, 1.5 of condition x seed, 1.8 between EM seeds.

    ems: EM seeds of a checkpoint, by condition. shift: of the first condition. scale: of the last two SDs.
    """
    shape = (sim.n, CONDITIONS, pipelines)
    sd_em = 1.8 / np.sqrt(np.broadcast_to(ems, (CONDITIONS,)))[None, :, None]
    own = sim.rng.normal(0, 1.5, shape) + sd_em * sim.rng.normal(0, 1, shape)
    means = sd_block * sim.rng.normal(0, 1, (sim.n, 1, pipelines)) + own * (1.0 if scale is None else scale[:, None])
    means[:, 0] += shift
    return np.asarray(means)


def blocks(sim: Simulation) -> list[list[str]]:
    """One pair at .05 in five conditions."""
    rows = []
    for p, e in DESIGNS:
        real, null = components(sim, p, e, shift=5.0), components(sim, p, e)
        tests: list[PairP] = [pooled_p, _decides, hc2_p, nested_p]
        power_ = [str(Rate.of(test(real) < ALPHA)) for test in tests]
        false = [str(Rate.of(test(null) < ALPHA)) for test in tests[:2]]
        rows.append([f"{p} x {e}", *power_, *false])
    return rows


def _decides(means: FloatArray) -> FloatArray:
    return blocked.closed_form(means, _pair_weights(0, 1)).p()


def no_block(sim: Simulation) -> list[list[str]]:
    """Where seeds do not differ, nested would be right."""
    rows = []
    for p, e in DESIGNS:
        means = components(sim, p, e, sd_block=0.0, shift=5.0)
        rates = [Rate.of(test(means) < ALPHA) for test in (pooled_p, nested_p)]
        rows.append([f"{p} x {e}", *map(str, rates), f"{(rates[1].hits - rates[0].hits) / sim.n:.3f}"])
    return rows


def unequal(sim: Simulation) -> list[list[str]]:
    """No effect, SDs as published for ARC; one pair at .05, the widest two conditions and the narrowest two."""
    rows = []
    for pipelines in (3, 5, 10):
        means = components(sim, pipelines, EM_SEEDS, scale=SD_ARC)
        for name, a, b in (("the two widest", 0, 3), ("the widest and the narrowest", 0, 2), ("two narrow ones", 1, 2)):
            decides = blocked.closed_form(means, _pair_weights(a, b)).p()
            p_values = (pooled_p(means, a, b), decides, hc2_p(means, a, b), separate_p(means, a, b))
            rows.append([f"{pipelines}, {name}", *(str(Rate.of(p < ALPHA)) for p in p_values)])
    return rows


def uneven(sim: Simulation) -> list[list[str]]:
    """No effect; the first two conditions have fewer EM seeds than the others."""
    rows = []
    for few in (1, 2, 5):
        counts = ((few, few, EM_SEEDS, EM_SEEDS, EM_SEEDS), few)
        rates = [str(Rate.of(pooled_p(components(sim, 3, ems)) < ALPHA)) for ems in counts]
        rows.append([f"{few} and {EM_SEEDS}", *rates])
    return rows


def detectable(sim: Simulation) -> list[list[str]]:
    """Computed, not simulated; then simulated at the effect that was computed."""
    rows = []
    for unit, seeds in ((EM_SEED, (2, 3, 5, 10)), (PIPELINE_SEED, (2, 3, 5, 10))):
        for n in seeds:
            least = [minimum_detectable(n, alpha, unit, CONDITIONS) for alpha in (0.05, 0.005)]
            draws = sim.rng.normal(0, 1, (sim.n, CONDITIONS, n))
            draws[:, 0] += least[0]
            p = pooled_p(draws) if unit == PIPELINE_SEED else stats.ttest_ind(draws[:, 0], draws[:, 1], axis=1).pvalue
            rows.append([f"{n} {unit}s", *(f"{x:.2f}" for x in least), str(Rate.of(p < ALPHA))])
    return rows


def library(sim: Simulation) -> list[list[str]]:
    """The closed forms against the path of the report on 100 matrices: the largest difference of p."""
    means = components(Simulation(sim.rng, 100), 3, EM_SEEDS, shift=2.0, scale=SD_ARC)
    names = [str(c) for c in range(CONDITIONS)]
    closed = blocked.closed_form(means, _pair_weights(0, 1)).p()
    by_library = []
    for own in means:
        cells = {name: sample(row, PIPELINE_SEED, (1, 2, 3)) for name, row in zip(names, own, strict=True)}
        by_library.append(float(estimate(cells, pair("0", "1")).p()))
    em = Simulation(sim.rng, 100).matrices(sd_em=SD_ARC)[:, :, 0, :]
    welch = [float(estimate({"0": sample(x[0]), "1": sample(x[1])}, pair("0", "1")).p()) for x in em]
    return [
        ["a blocked pair, statsmodels OLS and HC3", f"{np.abs(closed - by_library).max():.1e}"],
        ["a pair of EM seeds, Welch", f"{np.abs(pair_p(em)[:, 0] - welch).max():.1e}"],
    ]


def _tost_p(m: FloatArray, s: FloatArray, a: int, b: int, margin: float) -> FloatArray:
    """Larger p of Welch's two one-sided tests."""
    se = np.sqrt((s[:, a] ** 2 + s[:, b] ** 2) / EM_SEEDS)
    df, difference = _welch_df(s, a, b), m[:, a] - m[:, b]
    return np.maximum(stats.t.sf((difference + margin) / se, df), stats.t.cdf((difference - margin) / se, df))


def _welch_t(m: FloatArray, s: FloatArray, a: int, b: int) -> FloatArray:
    return np.asarray((m[:, a] - m[:, b]) / np.sqrt((s[:, a] ** 2 + s[:, b] ** 2) / EM_SEEDS))


def _welch_df(s: FloatArray, a: int, b: int) -> FloatArray:
    v1, v2 = s[:, a] ** 2, s[:, b] ** 2
    return np.asarray((EM_SEEDS - 1) * (v1 + v2) ** 2 / (v1**2 + v2**2))


def _t_limit(s: FloatArray, a: int, b: int) -> FloatArray:
    return np.asarray(stats.t.ppf(0.975, _welch_df(s, a, b)))


RULES = ["no correction, .05", "published rule: Bonferroni .005", "Holm"]
SECTIONS: list[tuple[str, str, list[str], Callable[[Simulation], list[list[str]]]]] = [
    (
        "Familywise false positives when the unit is right",
        "Ten pairs of five conditions, ten replicates each unless said. Nominal: at most 5% for the two corrections. "
        "With no effect anywhere Holm's first step is Bonferroni's: they differ only where some effects are real.",
        ["case", *RULES],
        right_unit,
    ),
    (
        "The same when EM seeds are taken as the unit",
        "No condition has an effect, but each checkpoint has its own deviation, of the SD given (1 = that between EM "
        "seeds). Left: ten EM seeds on one checkpoint per condition. Right: three checkpoints, their 30 seeds pooled "
        "or averaged first; published rule.",
        ["checkpoint SD", *RULES, "3 checkpoints, 30 seeds pooled", "3 checkpoints as the unit"],
        wrong_unit,
    ),
    (
        "Coverage of the 95% intervals",
        "Ten EM seeds. The last lines take EM seeds of one checkpoint as the unit of a statement about the conditions.",
        ["interval", "holds the truth"],
        coverage,
    ),
    (
        "Equivalence",
        "Two one-sided Welch tests at .05, ten EM seeds, SD 1.82 points. Where the true difference is the margin, "
        "passing is an error: nominal 5%.",
        ["margin, points", "true difference", "one pair passes", "all ten pairs pass"],
        equivalence,
    ),
    (
        "Power of a pair",
        "Ten EM seeds, SD 1.82 points, one condition off by the difference given.",
        ["true difference, points", *RULES],
        power,
    ),
    (
        "Pipeline seeds as blocks",
        "P pipeline seeds x E EM seeds, five conditions, one pair at .05. SDs: 2 between seeds (the same in all "
        "conditions), 1.5 of condition x seed, 1.8 between EM seeds; power of a shift of 5, then false positives. "
        "`pooled`: the error of all "
        "conditions. `decides`: the larger of pooled and HC3 on the same OLS, which a verdict takes; each seed's own "
        "difference takes no part in it. Where SDs are equal the HC3 variance is too wide by 1 / (1 - h) on average, h "
        "= (C + P - 1) / (C P): 2.5 times at two seeds, 1.9 at three, 1.6 at five. That is what it costs in power, "
        "and what keeps the false positives of unequal SDs near .05, below. `HC2 for HC3`: what would decide with HC2, "
        "which is not too wide, and errs below. `nested`: seeds as if each condition had its own.",
        ["P x E", "power: pooled", "decides", "HC2 for HC3", "nested", "false: pooled", "decides"],
        blocks,
    ),
    (
        "What blocking costs where seeds do not differ",
        "As above with no SD between seeds, where nested would be right.",
        ["P x E", "power, pooled blocks", "power, nested", "lost"],
        no_block,
    ),
    (
        "Blocks with unequal SDs",
        "No effect, SDs as published for ARC (1 : 5), ten EM seeds; one pair at .05. Pooled error alone errs. "
        "`separate`: each seed's own difference.",
        ["pipeline seeds, pair", "pooled", "decides", "HC2 for HC3", "separate"],
        unequal,
    ),
    (
        "EM-seed counts that differ by condition",
        "No effect, three pipeline seeds; the pair has fewer EM seeds than the other three conditions. One pair at "
        ".05, pooled error: all EM seeds that are there, and the common ones alone.",
        ["EM seeds", "all of each", "the common first"],
        uneven,
    ),
    (
        "Least detectable differences",
        "In SDs of a replicate (of blocks: residual SDs of checkpoint means, five conditions), power .8; simulated "
        "at .05.",
        ["replicates", "at .05", "at .005", "found at .05"],
        detectable,
    ),
    (
        "Closed forms and libraries",
        "100 matrices through the closed forms above and through the report's own path.",
        ["test", "largest difference of p"],
        library,
    ),
]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(n: int, seed: int) -> str:
    """The whole document."""
    parts = [
        "# Calibration of the statistics",
        f"Made by `python -m benchmarks.stats.calibration --matrices {n} --seed {seed} --out docs/calibration.md`; not "
        f"edited by hand. {n} simulated matrices a line; in brackets the 95% Monte-Carlo (Wilson) interval.",
    ]
    for number, (title, text, header, make) in enumerate(SECTIONS):
        rows = make(Simulation(np.random.default_rng([seed, number]), n))
        parts += [f"## {title}", text, table(header, rows)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrices", type=int, default=20000, help="simulated matrices per line")
    parser.add_argument("--seed", type=int, default=20260416)
    parser.add_argument("--out", type=Path, help="write here instead of to the screen")
    args = parser.parse_args()
    text = report(args.matrices, args.seed)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
