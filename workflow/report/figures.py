"""Figures for a paper's column: every run is a point, colours that colour-blind readers can tell, the same "
"bytes twice."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure as Canvas

from workflow.report.blocks import Figure
from workflow.stats.samples import Sample
from workflow.stats.tests import SingleValue

# Okabe and Ito's palette, and shapes beside it, so that nothing hangs on colour alone.
BEFORE, AFTER, MARK, INK, SOFT = "#0072B2", "#D55E00", "#CC79A7", "#222222", "#8a8a8a"
COLUMN = 3.4  # inches: one column of a two-column page
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "svg.fonttype": "path",  # the page needs no font
}


@dataclass(frozen=True)
class Panel:
    """One metric. points and before: every value by condition; after: the summary that is drawn over them, if any."""

    title: str
    axis: str
    points: Mapping[str, Sequence[float]]
    after: Mapping[str, Sample]
    before: Mapping[str, Sequence[float]]
    chance: float | None = None


def before_after(id: str, panels: Sequence[Panel], conditions: Sequence[str], caption: str) -> Figure:
    """Before and after EM, one row per condition, one panel per metric."""

    def draw(axes: Sequence[Any]) -> None:
        for axis, panel in zip(axes, panels, strict=True):
            for row, name in enumerate(conditions):
                before, after = list(panel.before.get(name, ())), list(panel.points.get(name, ()))
                summary = panel.after.get(name)
                if before and summary:
                    axis.plot(
                        [sum(before) / len(before), summary.mean], [row, row], color=SOFT, linewidth=0.8, zorder=1
                    )
                axis.scatter(
                    before,
                    [row] * len(before),
                    marker="D",
                    s=22,
                    facecolors="white",
                    edgecolors=BEFORE,
                    linewidths=1.2,
                    zorder=4,
                )
                _run_points(axis, after, row)
                if summary:
                    axis.plot([summary.mean] * 2, [row - 0.3, row + 0.3], color=INK, linewidth=1.2, zorder=5)
                if not before and not after and not summary:
                    _say_missing(axis, row)
            if panel.chance is not None:
                axis.axvline(panel.chance, color=SOFT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
                axis.text(
                    panel.chance,
                    0.5,
                    " chance",
                    transform=axis.get_xaxis_transform(),
                    rotation=90,
                    ha="left",
                    va="center",
                    color=SOFT,
                    fontsize=6.5,
                )
            _rows(axis, conditions, panel)
        runs = any(values for panel in panels for values in panel.points.values())
        _legend(axes[0], [handle for handle in _handles() if runs or "one run" not in handle.get_label()], 3)

    return _figure(id, caption, _alt("Before and after EM", panels, conditions), draw, len(panels), len(conditions))


def matrix(id: str, panels: Sequence[Panel], conditions: Sequence[str], caption: str) -> Figure:
    """After EM only: every run as a point, mean and 95% interval beside them."""

    def draw(axes: Sequence[Any]) -> None:
        for axis, panel in zip(axes, panels, strict=True):
            for row, name in enumerate(conditions):
                values = list(panel.points.get(name, ()))
                _run_points(axis, values, row + 0.1)
                summary = panel.after.get(name)
                if summary:
                    half = summary.ci95_half_width
                    axis.errorbar(
                        summary.mean,
                        row - 0.24 * bool(values),
                        xerr=half,
                        fmt="s",
                        color=INK,
                        markersize=3.4,
                        capsize=2.5 if half else 0,
                        linewidth=1.1,
                        zorder=5,
                    )
                if not values and not summary:
                    _say_missing(axis, row)
            _rows(axis, conditions, panel)

    return _figure(id, caption, _alt("After EM", panels, conditions), draw, len(panels), len(conditions))


@dataclass(frozen=True)
class Single:
    """One value and what it is held against; `others` are its siblings where they are known one by one."""

    name: str
    result: SingleValue
    others: Sequence[float]
    more: Mapping[str, float]


def outlier(id: str, title: str, axis_name: str, rows: Sequence[Single], caption: str) -> Figure:
    """Each value against its siblings and their 95% prediction interval."""

    def draw(axes: Sequence[Any]) -> None:
        axis = axes[0]
        for row, single in enumerate(rows):
            r = single.result
            axis.plot(
                [r.prediction95_low, r.prediction95_high],
                [row - 0.22] * 2,
                color=INK,
                linewidth=3,
                alpha=0.35,
                solid_capstyle="butt",
                zorder=1,
            )
            axis.plot([r.others.mean] * 2, [row - 0.32, row - 0.12], color=INK, linewidth=1.2, zorder=2)
            _run_points(axis, list(single.others), row + 0.1)
            axis.scatter([r.value], [row], marker="X", s=38, color=MARK, edgecolors=INK, linewidths=0.6, zorder=6)
            for value in single.more.values():
                axis.scatter(
                    [value], [row], marker="^", s=26, facecolors="white", edgecolors=BEFORE, linewidths=1.1, zorder=6
                )
        names = [single.name for single in rows]
        _rows(axis, names, Panel(title, axis_name, {}, {}, {}))
        handles = [
            plt.Line2D(
                [], [], marker="X", linestyle="", color=MARK, markeredgecolor=INK, markersize=5, label="the run"
            ),
            plt.Line2D([], [], color=INK, alpha=0.35, linewidth=3, label="95% prediction interval"),
        ]
        if any(single.more for single in rows):
            handles.append(
                plt.Line2D(
                    [],
                    [],
                    marker="^",
                    linestyle="",
                    color="white",
                    markeredgecolor=BEFORE,
                    markersize=5,
                    label="replication",
                )
            )
        _legend(axis, handles, 2)

    told = "; ".join(f"{s.name} at {s.result.value:.3g}, {'inside' if s.result.inside else 'outside'}" for s in rows)
    return _figure(id, caption, f"{title}. One run against its replicates: {told}.", draw, 1, len(rows))


def _say_missing(axis: Any, row: int) -> None:
    axis.text(0.02, row, "missing", transform=axis.get_yaxis_transform(), va="center", color=AFTER, style="italic")


def _run_points(axis: Any, values: Sequence[float], row: float) -> None:
    """Runs as dots, spread a little by their order so that equal values stay visible."""
    n = len(values)
    offsets = [((i * 7) % max(n, 1) / max(n - 1, 1) - 0.5) * 0.26 if n > 1 else 0.0 for i in range(n)]
    axis.scatter(values, [row + offset for offset in offsets], s=11, color=AFTER, alpha=0.75, linewidths=0, zorder=3)


def _rows(axis: Any, names: Sequence[str], panel: Panel) -> None:
    axis.set_title(panel.title)
    axis.set_xlabel(panel.axis, labelpad=2)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.45, -0.65)
    axis.grid(axis="x", color="#e4e4e4", linewidth=0.5)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)


def _legend(axis: Any, handles: list[Any], columns: int) -> None:
    """Above all panels, in room of its own."""
    axis.figure.legend(handles=handles, loc="outside upper left", ncols=columns, handletextpad=0.4, columnspacing=1.2)


def _handles() -> list[Any]:
    return [
        plt.Line2D(
            [], [], marker="D", linestyle="", color="white", markeredgecolor=BEFORE, markersize=4.5, label="before EM"
        ),
        plt.Line2D([], [], marker="o", linestyle="", color=AFTER, markersize=3.5, label="after EM, one run"),
        plt.Line2D(
            [], [], marker="|", linestyle="", color=INK, markersize=8, markeredgewidth=1.3, label="mean after EM"
        ),
    ]


def _alt(what: str, panels: Sequence[Panel], conditions: Sequence[str]) -> str:
    told = []
    for panel in panels:
        means = ", ".join(f"{name} {panel.after[name].mean:.3g}" for name in conditions if name in panel.after)
        told.append(f"{panel.title}: means after EM {means or 'missing'}")
    return f"{what}, every run as a point. {'. '.join(told)}."


def _figure(id: str, caption: str, alt: str, draw: Any, panels: int, rows: int) -> Figure:
    """Draw once, save twice. The salt fixes the ids in the SVG; no date and no program name go into the files."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": id}):
        height = panels * (0.68 + 0.25 * rows) + 0.3
        canvas: Canvas = plt.figure(figsize=(COLUMN, height), layout="constrained")
        axes = canvas.subplots(panels, 1, squeeze=False)[:, 0]
        draw(list(axes))
        svg, png = io.BytesIO(), io.BytesIO()
        canvas.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        canvas.savefig(png, format="png", dpi=300, metadata={"Software": None})
        plt.close(canvas)
    return Figure(id, caption, alt, svg.getvalue(), png.getvalue())
