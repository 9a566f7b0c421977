"""How often a claim would be supported if nothing had any effect, by simulation of the design at hand."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from workflow.stats import blocked
from workflow.stats import claims_schema as schema
from workflow.stats.claims_rules import Case, case_of, size_of
from workflow.stats.claims_schema import Claims
from workflow.stats.evidence import Evidence, Missing, Where
from workflow.stats.samples import PIPELINE_SEED, NotTestable, Sample
from workflow.stats.verdicts import EQUIVALENT, verdict

MATRICES = 2000


def false_support(claims: Claims, evidence: Evidence, matrices: int = MATRICES, seed: int = 0) -> float | None:
    """Share of seeded matrices without any effect in which some claim of a difference is supported.

    Each cell keeps its own n, unit and spread (of blocks: variance of seeds and of condition x seed); metrics are drawn
    independently. Under no effect Holm's first step is Bonferroni's. None where no such claim can be judged.
    """
    null = replace(evidence, cells=_without_effects(evidence, matrices, seed), items={}, contamination={})
    supported = []
    for claim in claims.claims:
        if not isinstance(claim.rule, schema.Difference | schema.Change | schema.OnlyPairs):
            continue
        try:
            supported.append(_supported(case_of(claim, claims, null), matrices))
        except (Missing, NotTestable):
            continue
    return float(np.mean(np.any(supported, axis=0))) if supported else None


def _supported(case: Case, matrices: int) -> npt.NDArray[np.bool_]:
    rule, k = case.claim.rule, len(case.comparisons)
    corrected = rule.alpha / (1 if rule.correction == "none" else size_of(case))
    named = {frozenset(pair) for pair in rule.pairs} if isinstance(rule, schema.OnlyPairs) else None
    alpha = rule.alpha if k > 1 and named is None else corrected
    holds = []
    for name, e in case.estimates.items():
        words = np.broadcast_to(verdict(schema.region(rule), e, alpha), (matrices,))
        is_other = named is not None and frozenset(case.comparisons[name]) not in named
        holds.append(np.isin(words, EQUIVALENT if is_other else ["supported"]))
    return np.asarray(np.all(holds, axis=0))


def _without_effects(evidence: Evidence, matrices: int, seed: int) -> dict[Where, dict[str, Sample]]:
    null_cells: dict[Where, dict[str, Sample]] = {}
    for number, (where, cells) in enumerate(evidence.cells.items()):
        rng = np.random.default_rng([seed, number])
        blocks = {name: s for name, s in cells.items() if s.unit == PIPELINE_SEED and s.n > 1}
        sd_seed, sd_checkpoint = _block_sds(blocks)
        by_seed = {p: rng.normal(0, sd_seed, matrices) for s in blocks.values() for p in s.blocks}
        null_cells[where] = {}
        for name, s in cells.items():
            if name in blocks:
                common = np.stack([by_seed[p] for p in s.blocks], axis=-1)
                values = common + rng.normal(0, sd_checkpoint, (matrices, s.n))
            else:
                values = rng.normal(0, s.sd or 1.0, (matrices, s.n))
            null_cells[where][name] = Sample(values, s.unit, s.blocks)
    return null_cells


def _block_sds(cells: Mapping[str, Sample]) -> tuple[float, float]:
    """SD of pipeline seeds and of condition x seed; 0 and 1 where they cannot be told."""
    table = blocked.checkpoints(cells) if len(cells) > 1 else None
    if table is None or not np.isfinite(table.means).all():
        return 0.0, 1.0
    _, ms_seed, ms_error = blocked.mean_squares(table.means)
    return float(np.sqrt(max(0.0, ms_seed - ms_error) / len(cells))), float(np.sqrt(ms_error)) or 1.0
