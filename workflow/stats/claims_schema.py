"""The form of config/claims.yaml: typed and closed, refused with a reason while it is read.

A claim says who is compared (contrast), in what (metric, phase), by which rule, and how strongly it was put. Its text
is a template over FACTS; the verdict and every figure in the sentence are filled in from the evidence.
"""

import math
from pathlib import Path
from string import Formatter
from typing import Annotated, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

FACTS = (
    "verdict",
    "reason",
    "passed",
    "tested",
    "members",
    "passing",
    "others",
    "estimate",
    "interval",
    "t",
    "p",
    "d",
    "first_mean",
    "second_mean",
    "lowest",
    "highest",
    "margin",
    "threshold",
    "n",
    "unit",
)
OF_ONE = {"estimate", "interval", "t", "p", "d"}  # facts of a claim that makes a single comparison
OF_GROUPS = {"first_mean", "second_mean"}
Stated = Literal["preliminary", "moderate", "strong"]
Name = Annotated[str, StringConstraints(min_length=1, pattern=r"^\S+$")]
Number = Annotated[float, Field(strict=True)]
Positive = Annotated[float, Field(strict=True, gt=0)]
Probability = Annotated[float, Field(strict=True, gt=0, lt=1)]
Count = Annotated[int, Field(strict=True, ge=1)]
Names = Annotated[list[Name], Field(min_length=1)]


class Closed(BaseModel):
    """Unknown names are refused, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# --- who ------------------------------------------------------------------------------------------------------------


class Pairs(Closed):
    """Each of first against each of second, first minus second; one against every rival says 'best cell'."""

    kind: Literal["pairs"]
    first: Names
    second: Names


class AllPairs(Closed):
    """Every pair of these conditions."""

    kind: Literal["all_pairs"]
    conditions: Annotated[list[Name], Field(min_length=2)]


class Weights(Closed):
    """A declared contrast, by name."""

    kind: Literal["weights"]
    name: Name


class Groups(Closed):
    """Two groups of conditions, mean of means, first minus second; they may be of different scale."""

    kind: Literal["groups"]
    first: Names
    second: Names


class OneRun(Closed):
    """One named run against the replicates of a condition."""

    kind: Literal["one_run"]
    run: Name
    against: Name


class BeforeAfter(Closed):
    """Each condition after EM against itself before EM."""

    kind: Literal["before_after"]
    conditions: Names


Contrast = Annotated[Pairs | AllPairs | Weights | Groups | OneRun | BeforeAfter, Field(discriminator="kind")]


# --- how ------------------------------------------------------------------------------------------------------------


class RuleBase(Closed):
    """alpha is that of the whole family; family says which tests share it.

    all_pairs: the pairs of the matrix, as the published rule counts them. declared: the declared contrasts of the
    matrix times the primary metrics. claim: the comparisons of this claim.
    """

    takes: ClassVar[tuple[str, ...]] = ()
    alpha: Probability = 0.05
    correction: Literal["none", "bonferroni", "holm"] = "none"
    family: Literal["all_pairs", "declared", "claim"] = "claim"


class Sized(RuleBase):
    """A size that was stated, in the metric's own units (effect_raw) or as a standardised difference (effect)."""

    effect_raw: Positive | None = None
    effect: Positive | None = None

    @model_validator(mode="after")
    def _has_one_size(self) -> Self:
        if self.effect is not None and self.effect_raw is not None:
            raise ValueError("effect and effect_raw: a claim states one size")
        return self


class Margin(RuleBase):
    """A margin of equivalence in the metric's own units, and why it is that one."""

    margin: Positive
    because: Annotated[str, StringConstraints(min_length=10)]


class Difference(Sized):
    """A difference in the direction said, of the size stated if there is one. With a margin (and its reason) the claim
    may also turn out equivalent."""

    test: Literal["difference"]
    takes: ClassVar[tuple[str, ...]] = ("pairs", "all_pairs", "weights", "groups")
    direction: Literal["higher", "lower", "either"]
    margin: Positive | None = None
    because: str = ""

    @model_validator(mode="after")
    def _margin_has_a_reason(self) -> Self:
        if self.margin is not None and len(self.because) < 10:
            raise ValueError(f"margin {self.margin:g} needs a `because:`")
        return self


class Equivalence(Margin):
    """No difference beyond the margin: the 1 - 2 alpha interval lies within it."""

    test: Literal["equivalence"]
    takes: ClassVar[tuple[str, ...]] = ("pairs", "all_pairs", "weights", "groups")


class Overlap(RuleBase):
    """Whether intervals overlap, once per reading of what the interval is."""

    test: Literal["overlap"]
    takes: ClassVar[tuple[str, ...]] = ("pairs", "all_pairs")
    readings: Annotated[list[Literal["sd", "se", "ci95"]], Field(min_length=1)]


class Size(Margin):
    """|d| is about effect: its interval lies within effect +- margin. standardiser: within_cell, or all seeds of a
    group pooled."""

    test: Literal["size"]
    takes: ClassVar[tuple[str, ...]] = ("groups",)
    effect: Positive
    standardiser: Literal["within_cell", "pooled_seeds"]


class Replicate(RuleBase):
    """Whether the run lies outside or inside the prediction interval of one more replicate."""

    test: Literal["replicate"]
    takes: ClassVar[tuple[str, ...]] = ("one_run",)
    lies: Literal["outside", "inside"]


class OnlyPairs(Margin):
    """These pairs differ, and every other of the contrast is equivalent within the margin."""

    test: Literal["only_pairs"]
    takes: ClassVar[tuple[str, ...]] = ("all_pairs",)
    pairs: Annotated[list[tuple[Name, Name]], Field(min_length=1)]


class Change(Sized):
    """Every condition moves in the direction said, paired by checkpoint."""

    test: Literal["change"]
    takes: ClassVar[tuple[str, ...]] = ("before_after",)
    direction: Literal["higher", "lower"]


Rule = Annotated[
    Difference | Equivalence | Overlap | Size | Replicate | OnlyPairs | Change, Field(discriminator="test")
]


# --- what -----------------------------------------------------------------------------------------------------------


class Claim(Closed):
    """finding: the number of the original's finding that it restates, if any; said: that finding in our words.

    measure: the level of the metric, or its change from before to after EM (condition x time).
    strength: how strongly the original put it; how strongly it may be put follows from the data.
    """

    id: Name
    finding: Count | None = None
    said: str = ""
    text: str
    metric: Name
    phase: Literal["pre_em", "post_em"] = "post_em"
    measure: Literal["level", "change"] = "level"
    instrument: Name | None = None
    contrast: Contrast
    rule: Rule
    strength: Stated

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.contrast.kind not in self.rule.takes:
            raise ValueError(
                f"{self.id}: rule {self.rule.test} takes a contrast of kind {' or '.join(self.rule.takes)}, "
                f"not {self.contrast.kind}"
            )
        changes = self.rule.test == "change" or self.measure == "change"
        if changes and self.phase != "post_em":
            raise ValueError(f"{self.id}: a change is judged after EM; phase must be post_em")
        if self.measure == "change" and self.contrast.kind in ("one_run", "before_after"):
            raise ValueError(f"{self.id}: measure change compares conditions; {self.contrast.kind} does not")
        asked = {field for _, field, _, _ in Formatter().parse(self.text) if field is not None}
        if unknown := asked - set(FACTS):
            raise ValueError(f"{self.id}: text asks for {sorted(unknown)}; there are {', '.join(FACTS)}")
        lacking = asked & OF_ONE if self.n_comparisons > 1 else set()
        lacking |= asked & OF_GROUPS if self.contrast.kind != "groups" else set()
        if lacking:
            raise ValueError(f"{self.id}: text asks for {sorted(lacking)}, which a claim of this contrast has none of")
        if "{verdict}" not in self.text:
            raise ValueError(f"{self.id}: text does not hold {{verdict}}, so it would read the same whatever came out")
        return self

    @property
    def n_comparisons(self) -> int:
        match self.contrast:
            case Pairs(first=first, second=second):
                return sum(1 for a in first for b in second if a != b)
            case AllPairs(conditions=conditions):
                return len(conditions) * (len(conditions) - 1) // 2
            case BeforeAfter(conditions=conditions):
                return len(conditions)
            case _:
                return 1


class DeclaredContrast(Closed):
    """Weights over conditions that sum to zero; the name says the sign."""

    name: Name
    weights: dict[Name, Number]

    @model_validator(mode="after")
    def _sums_to_zero(self) -> Self:
        if not all(math.isfinite(w) for w in self.weights.values()):
            raise ValueError(f"contrast {self.name}: a weight is NaN or infinite")
        if abs(sum(self.weights.values())) > 1e-9 or not any(self.weights.values()):
            raise ValueError(f"contrast {self.name}: weights sum to {sum(self.weights.values())}, not to zero")
        return self


class Claims(Closed):
    """matrix: the conditions whose pairs are the family of a correction. primary: the metrics that declared contrasts
    are confirmed on; claims on any other are exploratory and say so."""

    matrix: Annotated[list[Name], Field(min_length=2)]
    primary: Annotated[list[Name], Field(min_length=1, max_length=2)]
    contrasts: list[DeclaredContrast]
    claims: list[Claim]

    @model_validator(mode="after")
    def _names_are_whole(self) -> Self:
        for what, names in (
            ("claim", [claim.id for claim in self.claims]),
            ("contrast", [contrast.name for contrast in self.contrasts]),
            ("condition", self.matrix),
            ("primary metric", self.primary),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} named twice: {', '.join(twice)}")
        declared = {contrast.name for contrast in self.contrasts}
        for claim in self.claims:
            if isinstance(claim.contrast, Weights) and claim.contrast.name not in declared:
                raise ValueError(
                    f"{claim.id}: contrast {claim.contrast.name} is not declared; there are {sorted(declared)}"
                )
        return self

    def planned(self) -> dict[str, dict[str, float]]:
        """Weights of the declared contrasts among conditions of the matrix: with the primary metrics, one family."""
        return {name: weights for name, weights in self.declared().items() if set(weights) <= set(self.matrix)}

    def declared(self) -> dict[str, dict[str, float]]:
        """Weights of every declared contrast, by name."""
        return {contrast.name: dict(contrast.weights) for contrast in self.contrasts}

    def weights(self, name: str) -> dict[str, float]:
        """Weights of a declared contrast."""
        return self.declared()[name]


def load_claims(path: str | Path) -> Claims:
    """config/claims.yaml."""
    return Claims.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
