"""Figures: every run is a point, colours that colour-blind readers can tell, the same bytes twice; each as SVG, PNG,
PDF and the CSV of its points."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from workflow.report.page import Figure
from workflow.report.study import Place, Study
from workflow.stats.samples import Sample
from workflow.stats.tests import SingleValue

# Okabe and Ito's palette, and shapes beside it, so that nothing hangs on colour alone.
BEFORE, AFTER, MARK, INK, SOFT = "#0072B2", "#D55E00", "#CC79A7", "#222222", "#767676"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "path",  # the page needs no font
    "pdf.fonttype": 42,
}
TITLES = {"alignment": "Alignment", "arc": "ARC accuracy"}
Draw = Callable[[Sequence[Any]], None]


@dataclass(frozen=True)
class Panel:
    """One metric. points: values after EM, before: values before it, by condition; after: what is drawn over them."""

    title: str
    axis: str
    unit: str
    points: Mapping[str, Sequence[float]]
    after: Mapping[str, Sample]
    before: Mapping[str, Sequence[float]]
    chance: float | None = None

    @property
    def digits(self) -> int:
        return 2 if self.unit.startswith("fraction") else 1


def panel_of(study: Study, arm: str | None, place: Place) -> Panel:
    chances = {
        r.metrics["chance"] for n, r in study.records.items() if n.stage == "arc" and n.instrument == place.instrument
    }
    scorer = study.scorers.get(place.instrument)
    return Panel(
        f"{TITLES[place.metric]} ({place.instrument})",
        "fraction correct" if place.metric == "arc" else f"points 0–100{f', scored by {scorer}' if scorer else ''}",
        place.unit,
        {name: run_values(study, arm, place, name) for name in study.conditions},
        study.sample(arm, "post_em", place),
        {name: cell.data.tolist() for name, cell in study.sample(arm, "pre_em", place).items()},
        min(chances) if place.metric == "arc" and len(chances) == 1 else None,
    )


def run_values(study: Study, arm: str | None, place: Place, condition: str) -> list[float]:
    """Every run after EM, of all pipeline seeds."""
    return [row["value"] for row in study.values(place.instrument, place.metric, "post_em", arm, condition)]


# --- before and after -----------------------------------------------------------------------------------------------


def before_after(id: str, panels: Sequence[Panel], conditions: Sequence[str], caption: str) -> Figure:
    """Before and after EM, a row per condition, a panel per metric side by side; means with their 95% intervals."""

    def draw(axes: Sequence[Any]) -> None:
        for axis, panel in zip(axes, panels, strict=True):
            for row, name in enumerate(conditions):
                _condition(axis, panel, name, row)
            if panel.chance is not None:
                axis.axvline(panel.chance, color=SOFT, linewidth=0.9, linestyle=(0, (2, 2)), zorder=0)
                bottom = len(conditions) - 0.5
                axis.text(panel.chance, bottom, " chance", ha="left", va="bottom", color=SOFT, fontsize=8)
            _rows(axis, [readable(name) for name in conditions], panel)
            if axis is not axes[0]:
                axis.set_yticklabels([])
        axes[0].figure.legend(handles=_handles(panels), loc="outside lower left", ncols=4, handletextpad=0.4)

    rows = [
        {"panel": p.title, "condition": name, "phase": phase, "value": value}
        for p in panels
        for phase, values in (("pre_em", p.before), ("post_em", p.points))
        for name in conditions
        for value in values.get(name, ())
    ]
    rows += [
        {"panel": p.title, "condition": name, "phase": "post_em, mean", "value": s.mean, **_interval(s)}
        for p in panels
        for name, s in p.after.items()
    ]
    told = [
        f"{p.title}: means after EM "
        + (", ".join(f"{name} {p.after[name].mean:.3g}" for name in conditions if name in p.after) or "missing")
        for p in panels
    ]
    alt = f"Before and after EM, every run as a point. {'. '.join(told)}."
    size = (5.7 * len(panels), 0.46 * len(conditions) + 1.15)
    return figure(id, caption, alt, rows, draw, (1, len(panels)), size)


def _interval(s: Sample) -> dict[str, Any]:
    return {"ci95_half_width": s.ci95_half_width, "n": s.n, "unit": s.unit}


def _condition(axis: Any, panel: Panel, name: str, row: int) -> None:
    before, after = list(panel.before.get(name, ())), list(panel.points.get(name, ()))
    summary = panel.after.get(name)
    _run_points(axis, after, row + 0.26)
    if before:
        start = sum(before) / len(before)
        open_ = {"facecolors": "white", "edgecolors": BEFORE, "linewidths": 1.6}
        axis.scatter(before, [row] * len(before), marker="D", s=44, zorder=5, **open_)
        if summary:
            axis.annotate("", (summary.mean, row), (start, row), zorder=2,
                          arrowprops={"arrowstyle": "-", "color": SOFT, "linewidth": 1.1})  # fmt: skip
        axis.annotate(f"{start:.{panel.digits}f}", (start, row), (0, 6), textcoords="offset points", ha="center",
                      color=BEFORE, fontsize=8)  # fmt: skip
    if summary:
        half = summary.ci95_half_width
        axis.errorbar(summary.mean, row, xerr=half, fmt="o", color=AFTER, markersize=7, capsize=3.5 if half else 0,
                      linewidth=1.6, markeredgecolor="white", markeredgewidth=0.8, zorder=6)  # fmt: skip
        axis.annotate(f"{summary.mean:.{panel.digits}f}", (summary.mean, row), (0, 6), textcoords="offset points",
                      ha="center", color=AFTER, fontsize=8)  # fmt: skip
    if not before and not after and not summary:
        axis.text(0.02, row, "missing", transform=axis.get_yaxis_transform(), va="center", color=AFTER, style="italic")


def after_only(id: str, panel: Panel, conditions: Sequence[str], caption: str) -> Figure:
    """After EM alone, where differences between conditions can be seen: runs, mean and 95% interval."""

    def draw(axes: Sequence[Any]) -> None:
        shown = Panel(panel.title, panel.axis, panel.unit, panel.points, panel.after, {})
        for row, name in enumerate(conditions):
            _condition(axes[0], shown, name, row)
        _rows(axes[0], [readable(name) for name in conditions], panel)

    rows = [
        {"condition": name, "mean": s.mean, **_interval(s)}
        | {f"run {i}": value for i, value in enumerate(panel.points.get(name, ()), 1)}
        for name, s in panel.after.items()
    ]
    means = ", ".join(f"{name} {s.mean:.3g}" for name, s in panel.after.items()) or "missing"
    alt = f"After EM, {panel.title}: {means}."
    return figure(id, caption, alt, rows, draw, (1, 1), (5.7, 0.46 * len(conditions) + 0.8))


# --- one run against its siblings -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Single:
    """One value and what it is held against; `others` are its siblings where they are known one by one."""

    name: str
    result: SingleValue
    others: Sequence[float]
    more: Mapping[str, float]


def outlier(id: str, title: str, axis_name: str, singles: Sequence[Single], caption: str) -> Figure:
    """Each value against its siblings and their 95% prediction interval."""

    def draw(axes: Sequence[Any]) -> None:
        axis = axes[0]
        for row, single in enumerate(singles):
            r = single.result
            axis.plot(
                [r.prediction95_low, r.prediction95_high], [row] * 2, color=INK, linewidth=7, alpha=0.16, zorder=1
            )
            axis.plot([r.others.mean] * 2, [row - 0.2, row + 0.2], color=INK, linewidth=1.4, zorder=2)
            _run_points(axis, list(single.others), row + 0.26)
            axis.scatter([r.value], [row], marker="X", s=60, color=MARK, edgecolors=INK, linewidths=0.7, zorder=6)
            for value in single.more.values():
                axis.scatter([value], [row], marker="^", s=44, facecolors="white", edgecolors=BEFORE, linewidths=1.3,
                             zorder=6)  # fmt: skip
        _rows(axis, [single.name for single in singles], Panel(title, axis_name, "", {}, {}, {}))
        handles = [_handle("the run", "X", MARK, INK), _handle("mean of its siblings", "|", INK, INK)]
        handles.append(plt.Line2D([], [], color=INK, alpha=0.2, linewidth=7, label="95% prediction interval"))
        if any(single.more for single in singles):
            handles.append(_handle("replication", "^", "white", BEFORE))
        axis.figure.legend(handles=handles, loc="outside lower left", ncols=2, handletextpad=0.4)

    rows = [
        {
            "run": s.name.replace("\n", " "),
            "value": s.result.value,
            "low": s.result.prediction95_low,
            "high": s.result.prediction95_high,
            "mean_of_siblings": s.result.others.mean,
            "n": s.result.others.n,
            **s.more,
        }
        for s in singles
    ]
    told = "; ".join(f"{s.name} at {s.result.value:.3g}, {'inside' if s.result.inside else 'outside'}" for s in singles)
    alt = f"{title}. One run against its replicates: {told}.".replace("\n", " ")
    return figure(id, caption, alt, rows, draw, (1, 1), (5.7, 0.46 * len(singles) + 1.35))


# --- drawing --------------------------------------------------------------------------------------------------------


def readable(name: str) -> str:
    return name.replace("_", " ")


def _run_points(axis: Any, values: Sequence[float], row: float) -> None:
    """Runs as dots, spread a little by their order so that equal values stay visible."""
    n = len(values)
    offsets = [((i * 7) % max(n, 1) / max(n - 1, 1) - 0.5) * 0.2 if n > 1 else 0.0 for i in range(n)]
    axis.scatter(values, [row + offset for offset in offsets], s=12, color=AFTER, alpha=0.6, linewidths=0, zorder=3)


def _rows(axis: Any, names: Sequence[str], panel: Panel) -> None:
    axis.set_title(panel.title, pad=8)
    axis.set_xlabel(panel.axis, labelpad=2)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.75)
    axis.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    axis.margins(x=0.06)


def _handle(label: str, marker: str, face: str, edge: str, size: float = 7) -> Any:
    return plt.Line2D(
        [], [], marker=marker, linestyle="", color=face, markeredgecolor=edge, markersize=size, label=label
    )


def _handles(panels: Sequence[Panel]) -> list[Any]:
    units = dict.fromkeys(f"n = {s.n} {s.unit}{'s' * (s.n > 1)}" for p in panels for s in p.after.values())
    runs = any(values for panel in panels for values in panel.points.values())
    handles = [
        _handle("before EM", "D", "white", BEFORE),
        _handle(f"after EM, mean, 95% CI ({', '.join(units)})", "o", AFTER, AFTER),
    ]
    return handles + [_handle("one run after EM", "o", AFTER, AFTER, 3.5)] * runs


def figure(
    id: str,
    caption: str,
    alt: str,
    rows: Sequence[Mapping[str, Any]],
    draw: Draw,
    shape: tuple[int, int],
    size: tuple[float, float],
) -> Figure:
    """Draw once, save in each format. The salt fixes the ids in the SVG; no date and no program name go into them."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": id}):
        canvas = plt.figure(figsize=size, layout="constrained")
        draw(list(canvas.subplots(*shape, squeeze=False).flat))
        files = {}
        for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None}),
                               ("pdf", {"CreationDate": None, "Creator": None, "Producer": None})):  # fmt: skip
            buffer = io.BytesIO()
            canvas.savefig(buffer, format=kind, metadata=metadata, dpi=200)
            files[kind] = buffer.getvalue()
        plt.close(canvas)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(field for row in rows for field in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return Figure(id, caption, alt, {**files, "csv": text.getvalue().encode()})
