"""What the evaluations say beside their main numbers: ARC by contamination, the judges, preference pairs, thresholds,
reruns, and the checks of this run."""

from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import binomtest

from workflow.evals.pairs import change as pairs_change
from workflow.judge.agreement import panel_agreement
from workflow.matrix import Node
from workflow.report.numbers import FRACTION, NATS, POINTS, TIES
from workflow.report.page import Block, Column, Mark, Prose, Section, Table, number, ratio, show, stat, text, whole
from workflow.report.study import Place, Study, cell_page, numbers_link, title_of
from workflow.report.tests import changes_of, sample_row
from workflow.store import Record, out_dir, read_jsonl

ARC = ("arc", "arc_clean", "arc_contaminated")
Group = tuple[str, str, str | None]  # condition, phase, arm


def grouped(study: Study, stage: str, instrument: str) -> dict[Group, list[tuple[Node, Record]]]:
    """Records of one instrument by what is averaged, in the config's order."""
    groups: dict[Group, list[tuple[Node, Record]]] = {}
    for node, record in study.records.items():
        if node.stage == stage and node.instrument == instrument and node.cell is not None:
            groups.setdefault((node.cell.condition, node.cell.phase, node.cell.arm), []).append((node, record))
    return groups


def _of(group: Group) -> dict[str, Any]:
    return {"condition": group[0], "phase": group[1] + (f", arm {group[2]}" if group[2] else "")}


def _link(group: Group, place: Place) -> str:
    return numbers_link(group[2], group[1], place, group[0])


# --- checks ---------------------------------------------------------------------------------------------------------


def checks_section(study: Study) -> Section:
    """Measured, not asserted: ARC before EM against chance, alignment before EM against after it."""
    rows = []
    for place in study.places_of("arc"):
        for node, record in study.records.items():
            if node.instrument == place.instrument and node.cell is not None and node.cell.phase == "pre_em":
                m = record.metrics
                p = binomtest(m["correct"], m["items"], m["chance"], alternative="greater").pvalue
                beats = Mark("above chance", "supported") if p < 0.05 else Mark("not above chance", "refuted")
                row = {"model": node.label, "test": place.instrument, "accuracy": (m["correct"], m["items"])}
                page = cell_page(node.label, place.instrument)
                rows.append({**row, "chance": m["chance"], "p": p, "verdict": beats, "href": page})
    above = sum(row["verdict"].value == "above chance" for row in rows)
    named = ", ".join(place.instrument for place in study.places_of("arc"))
    blocks: list[Block] = []
    if rows:
        test = "(exact binomial test, one-sided, .05)"
        blocks.append(Prose(f"Before EM, {above} of {len(rows)} models answer {named} better than chance {test}."))
    blocks += _falls(study)
    if study.is_toy:
        blocks.append(
            Prose(
                "A toy model in a generated world: these lines say that training, evaluation and scoring are "
                "connected. They are no findings about language models.",
                "warn",
            )
        )
    if rows:
        columns = (
            text("model"),
            text("test"),
            stat("accuracy before EM", "accuracy", ratio),
            number("chance", "chance", FRACTION),
            stat("p", "p", "{:.4f}".format),
            text("", "verdict"),
        )
        blocks.append(Table("checks-arc-table", "ARC before EM against chance, model by model", columns, rows))
    return Section("checks", "Checks of this run", tuple(blocks))


def _falls(study: Study) -> list[Block]:
    found: list[Block] = []
    for arm in study.arms:
        for place in study.places_of("alignment"):
            before, after = study.sample(arm, "pre_em", place), study.sample(arm, "post_em", place)
            falls = [before[name].mean - after[name].mean for name in study.conditions if name in before.keys() & after]
            if falls:
                named = f" (arm {arm or 'main'})" if len(study.arms) > 1 else ""
                note = f" {study.judge_note(place.instrument)}".rstrip()
                found.append(
                    Prose(
                        f"Mean alignment by {place.instrument}{named} is lower after EM than before it in "
                        f"{sum(fall > 0 for fall in falls)} of {len(falls)} conditions; the fall is "
                        f"{show(min(falls), place.unit)} to {show(max(falls), place.unit)} points.{note}"
                    )
                )
    return found or [Prose("Alignment before against after EM: no condition has both.")]


# --- ARC ------------------------------------------------------------------------------------------------------------


def arc_section(study: Study) -> Section:
    """Accuracy in full and by contamination, against chance, with what the letters say."""
    blocks: list[Block] = []
    by_record = {(r["cell"], r["instrument"], r["metric"]): r for r in study.rows if r["state"] == "used"}
    parts = [stat(name, metric, ratio) for name, metric in zip(("full", "clean", "contaminated"), ARC, strict=True)]
    mass = number("letter mass (mean)", "mass", FRACTION)
    for arc in study.config.arc:
        rows = []
        for group, members in grouped(study, "arc", arc.name).items():
            counts = {m: [by_record.get((n.label, arc.name, m)) for n, _ in members] for m in ARC}
            row: dict[str, Any] = {**_of(group), "runs": len(members), "chance": members[0][1].metrics["chance"]}
            row["mass"] = sum(r.metrics["letter_mass_mean"] for _, r in members) / len(members)
            for metric, numbers in counts.items():
                sums = [sum(r[side] for r in numbers if r) for side in ("numerator", "denominator")]
                row[metric] = (sums[0], sums[1]) if sums[1] else None
            rows.append({**row, "href": _link(group, Place(arc.name, "arc", FRACTION))})
        if rows:
            notes = (
                "Clean and contaminated: items outside and inside the model's own training data, by the overlap check "
                "of the data; a dash: no such item, or nobody has looked (`matrix lock` does). Items of all runs of a "
                "row are pooled.",
            )
            columns = (
                *(text("condition"), text("phase"), whole("runs"), *parts),
                *(number("chance", "chance", FRACTION), mass),
            )
            blocks.append(Table(f"arc-{arc.name}", f"ARC accuracy by contamination ({arc.name})", columns, rows, notes))
    return Section("arc", "ARC: full, clean and contaminated", tuple(blocks))


# --- judges ---------------------------------------------------------------------------------------------------------


def outcomes_section(study: Study) -> Section:
    """Completions with and without a score, the means that those without one allow, and how far judges agree."""
    blocks: list[Block] = []
    for instrument in (i.of(judge) for i in study.config.instruments for judge in (i.judge, *i.panel)):
        groups = grouped(study, "judge", instrument)
        if groups:
            blocks += _outcomes(instrument, groups)
            blocks += _twice(instrument, groups)
    for i in study.config.instruments:
        blocks += [table for judge in i.panel for table in _panel(study, i.name, i.of(judge))]
    return Section("outcomes", "The judge: outcomes and agreement", tuple(blocks))


def _outcomes(instrument: str, groups: Mapping[Group, Sequence[tuple[Node, Record]]]) -> list[Block]:
    kinds = list(next(iter(groups.values()))[0][1].metrics["alignment"]["counts"])
    means = ("mean", "missing_0", "missing_100")
    rows, flagged = [], []
    for metric in ("alignment", "coherence"):
        for group, members in groups.items():
            found = [r.metrics[metric] for _, r in members]
            row: dict[str, Any] = {"scale": metric, **_of(group), "all": sum(m["n"] for m in found)}
            row |= {kind: sum(m["counts"].get(kind, 0) for m in found) for kind in kinds}
            for name in means:
                values = [m[name] for m in found if m[name] is not None]
                row[name] = sum(values) / len(values) if values else None
            scored = any(m["scored"] for m in found)
            rows.append({**row, "href": _link(group, Place(instrument, metric, POINTS)) if scored else ""})
    for members in groups.values():
        for node, record in members:
            unscored = record.observed.get("unscored") or {}
            if unscored.get("flagged"):
                flagged.append(f"{node.label} ({unscored['numerator']} of {unscored['denominator']})")
    tail = [
        number(n, f, POINTS) for n, f in zip(("mean of scored", "mean if missing = 0", "mean if missing = 100"), means)
    ]
    notes = ("Counts are of the completions of all runs of a row; means are over its runs.",)
    blocks: list[Block] = []
    if flagged:
        blocks.append(Prose(f"Many judgments without a score ({instrument}): {', '.join(flagged)}.", "warn"))
    columns = (text("scale"), text("condition"), text("phase"), *map(whole, kinds), whole("all"), *tail)
    blocks.append(Table(f"outcomes-{instrument}", f"Outcomes ({instrument})", columns, rows, notes, instrument))
    return blocks


def _agreement_columns() -> tuple[Column, ...]:
    return (
        text("cell"),
        text("scale"),
        whole("judged twice", "pairs"),
        whole("same outcome", "same_kind"),
        number("mean |difference|", "mean_abs_difference", POINTS),
        number("max |difference|", "max_abs_difference", POINTS),
        stat("same side of the threshold", "side", str),
    )


def _agreement_rows(label: str, found: Mapping[str, Mapping[str, Any]], page: str) -> list[dict[str, Any]]:
    return [
        {**a, "cell": label, "scale": scale, "side": f"{a['same_side']} / {a['scored']}", "href": page}
        for scale, a in found.items()
    ]


def _twice(instrument: str, groups: Mapping[Group, Sequence[tuple[Node, Record]]]) -> list[Block]:
    """How far second judgings of the same completions agree; nothing where none was asked for."""
    rows = [
        row
        for members in groups.values()
        for node, record in members
        for row in _agreement_rows(node.label, record.metrics.get("agreement") or {}, cell_page(node.label, instrument))
    ]
    id, caption = f"agreement-{instrument}", f"Completions judged twice ({instrument})"
    return [Table(id, caption, _agreement_columns(), rows, (), instrument)] if rows else []


def _panel(study: Study, first: str, other: str) -> list[Block]:
    """How far another judge of the panel agrees with the first, cell by cell."""
    judged = {name: {n.label: n for n in study.records if n.instrument == name and n.cell} for name in (first, other)}
    rows = []
    for label, node in judged[first].items():
        if label in judged[other]:
            both = [read_jsonl(out_dir(n.record) / "judgments.jsonl") for n in (node, judged[other][label])]
            rows += _agreement_rows(label, panel_agreement(*both), cell_page(label, other))
    if not rows:
        return []
    columns = (
        *_agreement_columns(),
        stat("Cohen's κ at the threshold", "kappa", "{:+.2f}".format),
        number("other − first, cell mean", "difference", POINTS, sign=True),
    )
    notes = ("κ: of the verdicts at the metric's threshold, over completions that both scored; a dash: both always say "
             "the same.",)  # fmt: skip
    return [Table(f"panel-{other}", f"{other} against {first}", columns, rows, notes, other)]


# --- preference pairs -----------------------------------------------------------------------------------------------


def preference_section(study: Study) -> Section:
    """Change of the likelihood margin of preferred answers from the checkpoint before EM: an instrument without a
    judge."""
    blocks: list[Block] = []
    for instrument in (pairs.name for pairs in study.config.pairs):
        blocks += [table for arm in study.arms for table in _changes(study, arm, instrument)]
        nodes = {n.label: n for n in study.records if n.stage == "pairs" and n.instrument == instrument}
        rows = []
        for label, node in nodes.items():
            cell = node.cell
            before = nodes.get(f"{cell.condition}.p{cell.pipeline_seed}") if cell and cell.em_seed is not None else None
            if before is not None:
                page = cell_page(label, instrument)
                found = pairs_change(*(read_jsonl(out_dir(n.record) / "pairs.jsonl") for n in (before, node)))
                rows.append({**found, "cell": Mark(label, href=page), "href": page})
        columns = (
            text("cell"),
            number("change of the margin", "mean", NATS, sign=True),
            number("SE, clustered by prompt", "se", NATS),
            number("change of the accuracy", "accuracy", FRACTION, sign=True),
            whole("pairs"),
            whole("clusters"),
        )
        if rows:
            id, caption = f"preference-cells-{instrument}", f"Every cell ({instrument})"
            blocks.append(Table(id, caption, columns, rows, is_folded=True))
    return Section("preference", "Preference pairs (no judge)", tuple(blocks))


def _changes(study: Study, arm: str | None, instrument: str) -> list[Block]:
    place, won = (
        Place(instrument, f"preference_{name}", unit) for name, unit in (("margin", NATS), ("accuracy", TIES))
    )
    changes = changes_of(study, arm, place)
    rows = [
        {
            "condition": name,
            **sample_row(changed),
            "accuracy": accuracy.mean if (accuracy := changes_of(study, arm, won).get(name)) else None,
            "href": numbers_link(arm, "post_em", place, name),
        }
        for name, changed in changes.items()
    ]
    columns = (
        text("condition"),
        whole("n"),
        text("unit"),
        number("change of the margin", "mean", NATS, sign=True),
        number("95% CI ±", "half", NATS),
        number("SD between seeds", "sd", NATS),
        number("change of the accuracy", "accuracy", FRACTION, sign=True),
    )
    notes = (
        "Margin: log-probability a token of the preferred answer minus that of the other, in nats; its change is of "
        "each pair, from the same checkpoint before EM. Lower after EM: the model has moved towards the other answers. "
        "It is a likelihood and no alignment score.",
    )
    id, caption = f"preference-{arm or 'main'}-{instrument}", f"Change by EM: {title_of(study, arm, place)}"
    return [Table(id, caption, columns, rows, notes)] if rows else []


# --- reruns ---------------------------------------------------------------------------------------------------------


def reruns_section(study: Study) -> Section:
    """Deliberate reruns of one recipe beside the original. They are no replicates: shown, never averaged."""
    originals = {(n.stage, n.key): r for n, r in study.records.items() if n.cell is not None}
    rows = []
    for node, record in study.records.items():
        original = originals.get((node.stage, node.key)) if node.cell is None else None
        for metric, unit in (("accuracy", FRACTION), ("alignment", POINTS), ("coherence", POINTS)):
            values = [_value(r.metrics.get(metric)) for r in (original, record) if r is not None]
            if original is None or None in values:
                continue
            first, again = (show(value, unit) for value in values if value is not None)
            same = Mark("the same bytes") if original.digest == record.digest else Mark("other bytes", "open")
            rows.append(
                {
                    "cell": original.cell,
                    "rerun": node.label,
                    "metric": metric,
                    "first": first,
                    "again": again,
                    "same": same,
                }
            )
    columns = (
        text("cell"),
        text("rerun"),
        text("number", "metric"),
        stat("original", "first", str),
        stat("rerun gave", "again", str),
        text("outputs", "same"),
    )
    instrument = next(iter(study.scorers), "")
    tables = (Table("reruns-table", "One recipe run again", columns, rows, (), instrument),) if rows else ()
    return Section("reruns", "Reruns", tables)


def _value(metric: float | dict[str, float] | None) -> float | None:
    return metric.get("mean") if isinstance(metric, dict) else metric
