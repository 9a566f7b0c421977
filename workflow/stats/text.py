"""Figures as text: one way to print each kind of number."""

import numpy as np

from workflow.stats.rounding import Range

ZERO = 1e-9  # what is smaller is the rounding of a float sum


def number(value: float, digits: int = 3) -> str:
    """To `digits` significant figures, without exponent for what a table holds: 25.7, 0.827, 0.0793, 0."""
    if abs(value) < ZERO or not np.isfinite(value):
        return "0" if abs(value) < ZERO else f"{value:g}"
    places = max(0, digits - 1 - int(np.floor(np.log10(abs(value)))))
    return f"{value:.{places}f}"


def signed(value: float, digits: int = 3) -> str:
    """As number, with its sign."""
    return ("+" if value >= ZERO else "") + number(value, digits)


def p_text(p: float) -> str:
    """p to two significant figures, and never 0: under .0001 it is a bound."""
    if p < 1e-4:
        return "< .0001"
    return f"{1.0:.2f}" if p > 0.995 else number(p, 2).removeprefix("0")


def ranged(text: str, low: str, high: str) -> str:
    """The figure, with its range where printed digits move what is shown."""
    return text if low == high else f"{text} [{low}, {high}]"


def range_text(value: Range, sign: bool = True) -> str:
    """A Range of an estimate, t or d."""
    show = signed if sign else number
    return ranged(show(value.value), show(value.low), show(value.high))


def p_range_text(p: Range) -> str:
    """A Range of p."""
    return ranged(p_text(p.value), p_text(p.low), p_text(p.high))


def interval_text(low: float, high: float) -> str:
    return f"{signed(low)} to {signed(high)}"
