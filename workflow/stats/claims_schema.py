"""The form of config/claims.yaml: typed and closed, refused with a reason while it is read.

A claim says who is compared (contrast), in what (metric, phase), by which rule, and how strongly it was put. Its text
is a template over FACTS; the verdict and every figure in the sentence are filled in from the evidence.
"""

from itertools import combinations
from pathlib import Path
from string import Formatter
from typing import Annotated, ClassVar, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from workflow.stats.contrasts import check_weights, means_of, pair
from workflow.stats.tests import Correction
from workflow.stats.verdicts import Direction, Region

OF_ONE = {"estimate", "interval", "t", "p", "d"}  # facts of a claim that makes a single comparison
OF_GROUPS = {"first_mean", "second_mean"}
FACTS = {"verdict", "reason", "passed", "tested", "members", "passing", "others", "lowest", "highest", "margin"}
FACTS |= {"threshold", "n", "unit"} | OF_ONE | OF_GROUPS


def _unique(names: list[str]) -> list[str]:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"named twice: {', '.join(twice)}")
    return names


Name = Annotated[str, StringConstraints(min_length=1, pattern=r"^\S+$")]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(strict=True, gt=0, lt=1)]
Reason = Annotated[str, StringConstraints(min_length=10)]
Names = Annotated[list[Name], Field(min_length=1)]
Several = Annotated[list[Name], Field(min_length=1), AfterValidator(_unique)]
Weights = Annotated[dict[Name, Annotated[float, Field(strict=True)]], AfterValidator(check_weights)]
Comparisons = dict[str, dict[str, float]]  # weights of the conditions by the name of a comparison


class Closed(BaseModel):
    """Unknown names are refused, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# --- who ------------------------------------------------------------------------------------------------------------


class Sides(Closed):
    """pairs: each of first against each of second; one against every rival says 'best cell'. groups: mean of means of
    the first against that of the second; they may be of different scale. First minus second."""

    kind: Literal["pairs", "groups"]
    first: Names
    second: Names


class Listed(Closed):
    """all_pairs: every pair of these conditions. before_after: each after EM against itself before EM."""

    kind: Literal["all_pairs", "before_after"]
    conditions: Several


class Declared(Closed):
    """A declared contrast, by name."""

    kind: Literal["weights"]
    name: Name


class OneRun(Closed):
    """One named run against the replicates of a condition."""

    kind: Literal["one_run"]
    run: Name
    against: Name


Contrast = Annotated[Sides | Listed | Declared | OneRun, Field(discriminator="kind")]


def comparisons_of(contrast: Contrast, declared: Comparisons) -> Comparisons:
    """Each comparison of a contrast; of before_after the condition alone."""
    match contrast:
        case Sides(kind="pairs", first=first, second=second):
            return {f"{a} - {b}": pair(a, b) for a in first for b in second if a != b}
        case Sides(first=first, second=second):
            return {f"{'+'.join(first)} - {'+'.join(second)}": means_of(first, second)}
        case Listed(kind="all_pairs", conditions=conditions):
            return {f"{a} - {b}": pair(a, b) for a, b in combinations(conditions, 2)}
        case Listed(conditions=conditions):
            return {name: {name: 1.0} for name in conditions}
        case Declared(name=name):
            return {name: declared.get(name, {})}
        case OneRun():
            return {}


# --- how ------------------------------------------------------------------------------------------------------------


class RuleBase(Closed):
    """alpha is that of the whole family; family says which tests share it.

    all_pairs: the pairs of the matrix, as the published rule counts them. declared: the declared contrasts of the
    matrix times the primary metrics. claim: the comparisons of this claim.
    """

    takes: ClassVar[tuple[str, ...]] = ()
    alpha: Probability = 0.05
    correction: Correction = "none"
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

    @property
    def size(self) -> float:
        return self.effect or self.effect_raw or 0.0


class Margin(RuleBase):
    """A margin of equivalence in the metric's own units, and why it is that one."""

    margin: Positive
    because: Reason


class Difference(Sized):
    """A difference in the direction said, of the size stated if there is one. With a margin (and its reason) the claim
    may also turn out equivalent."""

    test: Literal["difference"]
    takes = ("pairs", "all_pairs", "weights", "groups")
    direction: Direction
    margin: Positive | None = None
    because: Reason | Literal[""] = ""

    @model_validator(mode="after")
    def _margin_has_a_reason(self) -> Self:
        if self.margin and not self.because:
            raise ValueError(f"margin {self.margin:g} needs a `because:`")
        return self


class Change(Sized):
    """Every condition moves in the direction said, paired by checkpoint."""

    test: Literal["change"]
    takes = ("before_after",)
    direction: Literal["higher", "lower"]


class Equivalence(Margin):
    """No difference beyond the margin: the 1 - 2 alpha interval lies within it."""

    test: Literal["equivalence"]
    takes = ("pairs", "all_pairs", "weights", "groups")


class OnlyPairs(Margin):
    """These pairs differ, and every other of the contrast is equivalent within the margin."""

    test: Literal["only_pairs"]
    takes = ("all_pairs",)
    pairs: Annotated[list[tuple[Name, Name]], Field(min_length=1)]


class Size(Margin):
    """|d| is about effect: its interval lies within effect +- margin. standardiser: within_cell, or all seeds of a
    group pooled."""

    test: Literal["size"]
    takes = ("groups",)
    effect: Positive
    standardiser: Literal["within_cell", "pooled_seeds"]


class Overlap(RuleBase):
    """Whether intervals overlap, once per reading of what the interval is."""

    test: Literal["overlap"]
    takes = ("pairs", "all_pairs")
    readings: Annotated[list[Literal["sd", "se", "ci95"]], Field(min_length=1)]


class Replicate(RuleBase):
    """Whether the run lies outside or inside the prediction interval of one more replicate."""

    test: Literal["replicate"]
    takes = ("one_run",)
    lies: Literal["outside", "inside"]


Rule = Annotated[
    Difference | Change | Equivalence | OnlyPairs | Size | Overlap | Replicate, Field(discriminator="test")
]


def region(rule: Rule) -> Region:
    """What a rule asks of the interval of a comparison."""
    match rule:
        case Difference():
            return Region(rule.direction, rule.size, rule.margin, rule.effect is not None, rule.alpha)
        case Change():
            return Region(rule.direction, rule.size, None, rule.effect is not None, rule.alpha)
        case Equivalence():
            return Region(None, 0.0, rule.margin, False, rule.alpha)
        case OnlyPairs():
            return Region("either", 0.0, rule.margin, False, rule.alpha)
        case Size():
            return Region(None, rule.effect, rule.margin, True, rule.alpha)
        case _:
            raise AssertionError(f"{rule.test}: decided by no region")


# --- what -----------------------------------------------------------------------------------------------------------


class Claim(Closed):
    """finding: the number of the original's finding that it restates, if any; said: that finding in our words.

    measure: the level of the metric, or its change from before to after EM (condition x time).
    strength: how strongly the original put it; how strongly it may be put follows from the data.
    """

    id: Name
    finding: Annotated[int, Field(strict=True, ge=1)] | None = None
    said: str = ""
    text: str
    metric: Name
    phase: Literal["pre_em", "post_em"] = "post_em"
    measure: Literal["level", "change"] = "level"
    instrument: Name | None = None
    contrast: Contrast
    rule: Rule
    strength: Literal["preliminary", "moderate", "strong"]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        kind, rule = self.contrast.kind, self.rule
        asked = {field for _, field, _, _ in Formatter().parse(self.text) if field is not None}
        lacking = asked & OF_ONE if len(comparisons_of(self.contrast, {})) > 1 else set()
        lacking |= asked & OF_GROUPS if kind != "groups" else set()
        faults = {
            f"rule {rule.test} takes a contrast of kind {' or '.join(rule.takes)}, not {kind}": kind not in rule.takes,
            "family all_pairs is of pairs; correct over family declared or claim": (
                rule.family == "all_pairs" and kind in ("groups", "weights")
            ),
            "a change is judged after EM; phase must be post_em": self.is_change and self.phase != "post_em",
            f"measure change compares conditions; {kind} does not": (
                self.measure == "change" and kind in ("one_run", "before_after")
            ),
            f"text asks for {sorted(asked - FACTS)}; there are {', '.join(sorted(FACTS))}": bool(asked - FACTS),
            f"text asks for {sorted(lacking)}, which a claim of this contrast has none of": bool(lacking),
            "text does not hold {verdict}, so it would read the same whatever came out": "{verdict}" not in self.text,
        }
        for fault, is_there in faults.items():
            if is_there:
                raise ValueError(f"{self.id}: {fault}")
        return self

    @property
    def is_change(self) -> bool:
        return self.rule.test == "change" or self.measure == "change"


class DeclaredContrast(Closed):
    """Weights over conditions that sum to zero; the name says the sign."""

    name: Name
    weights: Weights


class Claims(Closed):
    """matrix: the conditions whose pairs are the family of a correction. primary: the metrics that declared contrasts
    are confirmed on; claims on any other are exploratory and say so."""

    matrix: Annotated[Several, Field(min_length=2)]
    primary: Annotated[Several, Field(max_length=2)]
    contrasts: list[DeclaredContrast]
    claims: list[Claim]

    @model_validator(mode="after")
    def _names_are_whole(self) -> Self:
        _unique([f"claim {claim.id}" for claim in self.claims])
        _unique([f"contrast {contrast.name}" for contrast in self.contrasts])
        for claim in self.claims:
            if isinstance(claim.contrast, Declared) and claim.contrast.name not in self.declared():
                raise ValueError(
                    f"{claim.id}: contrast {claim.contrast.name} is not declared; there are {sorted(self.declared())}"
                )
        return self

    def declared(self) -> Comparisons:
        """Weights of every declared contrast, by name."""
        return {contrast.name: dict(contrast.weights) for contrast in self.contrasts}

    def planned(self) -> Comparisons:
        """Those among conditions of the matrix: with the primary metrics, one family."""
        return {name: weights for name, weights in self.declared().items() if set(weights) <= set(self.matrix)}

    def comparisons(self, claim: Claim) -> Comparisons:
        """Weights by name, in the claim's order."""
        return comparisons_of(claim.contrast, self.declared())

    def conditions(self, claim: Claim) -> list[str]:
        """Every condition that a claim speaks of, in order."""
        match claim.contrast:
            case Sides(first=first, second=second):
                return list(dict.fromkeys([*first, *second]))
            case OneRun(against=against):
                return [against]
            case _:
                return list(dict.fromkeys(c for weights in self.comparisons(claim).values() for c in weights))


def load_claims(path: str | Path) -> Claims:
    """config/claims.yaml."""
    return Claims.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
