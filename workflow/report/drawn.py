"""The figures of a study: what is drawn from which numbers."""

from workflow.report.blocks import Figure, Section
from workflow.report.figures import Panel, Single, before_after, matrix, outlier
from workflow.report.spread import extremes
from workflow.report.study import Place, Study

TITLES = {"alignment": "Alignment", "arc": "ARC accuracy"}


def axis_name(study: Study, place: Place) -> str:
    """What is measured, in what, and by whom where no model judged it: a figure is read without its page."""
    if place.metric == "arc":
        return "fraction correct"
    scorer = study.scorers.get(place.instrument)
    return f"points 0–100\nby {scorer} (rules)" if scorer else "points 0–100"


def figures_section(study: Study) -> Section:
    found: list[Figure] = []
    for arm in study.arms:
        before = [_panel(study, arm, place) for metric in ("alignment", "arc") for place in study.places_of(metric)]
        if not before:
            continue
        slug = arm or "main"
        named = f" Arm {slug}." if len(study.arms) > 1 else ""
        scorers = "".join(f" {study.judge_note(name)}" for name in study.scorers)
        n = sorted({cell.n for panel in before for cell in panel.after.values()})
        told = f"n = {' or '.join(map(str, n))} per condition." if n else "No run after EM."
        caption = f"Before and after EM, every run as a point. {told}{named}{scorers}"
        found.append(before_after(f"figure-before-after-{slug}", before, study.conditions, caption))
        caption = (
            f"After EM: every run as a point; square and bar: mean and its 95% interval (Student t). "
            f"{told} The axes do not start at zero.{named}{scorers}"
        )
        found.append(matrix(f"figure-matrix-{slug}", before, study.conditions, caption))
    return Section("figures", "Figures", tuple(found))


def outlier_figures(study: Study) -> list[Figure]:
    """Per place of the main arm, each condition's most extreme run."""
    found = []
    arm = study.arms[0]
    for place in (*study.places_of("alignment"), *study.places_of("arc")):
        rows = [
            Single(cell, result, _values(study, arm, place, name, cell), {})
            for name, cell, result in extremes(study, arm, place)
        ]
        if rows:
            note = study.judge_note(place.instrument)
            caption = f"Each condition's most extreme run against its siblings (dots). {note}".strip()
            found.append(
                outlier(
                    f"figure-outliers-{place.instrument}-{place.metric}",
                    f"{TITLES[place.metric]} ({place.instrument})",
                    axis_name(study, place),
                    rows,
                    caption,
                )
            )
    return found


def _panel(study: Study, arm: str | None, place: Place) -> Panel:
    chances = {
        r.metrics["chance"] for n, r in study.records.items() if n.stage == "arc" and n.instrument == place.instrument
    }
    return Panel(
        f"{TITLES[place.metric]} ({place.instrument})",
        axis_name(study, place),
        {name: _values(study, arm, place, name) for name in study.conditions},
        study.sample(arm, "post_em", place),
        {name: list(cell.values) for name, cell in study.sample(arm, "pre_em", place).items()},
        min(chances) if place.metric == "arc" and len(chances) == 1 else None,
    )


def _values(study: Study, arm: str | None, place: Place, condition: str, without: str = "") -> list[float]:
    """Every run after EM, of all pipeline seeds."""
    return [
        r["value"]
        for r in study.rows
        if (r["instrument"], r["metric"], r["condition"], r["phase"], r["arm"])
        == (place.instrument, place.metric, condition, "post_em", arm)
        and r["cell"] != without
    ]
