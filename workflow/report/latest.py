"""Point results/report/latest.html at the finished report of a config, and say in a few lines what stands in it.

python -m workflow.report.latest --configfile config/demo.yaml
"""

import argparse
import os
import sys
from pathlib import Path

import pandas as pd

from workflow.config import Config, ConfigError
from workflow.data.lock import read_lock
from workflow.matrix import Matrix
from workflow.report.blocks import MISSING, show
from workflow.report.study import EMBEDDED
from workflow.stats.table import PHASES, check_scores, samples
from workflow.store import StoreError, out_dir, read_record

LATEST = Path("results/report/latest.html")
METRICS = ("arc", "alignment", "coherence")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m workflow.report.latest", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--configfile", default="config/config.yaml", help="the experiment")
    args = parser.parse_args(argv)
    try:
        config = Config.load(args.configfile)
        matrix = Matrix(config, read_lock(), args.configfile)
        page = link(matrix)
    except (ConfigError, StoreError, LookupError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("means before -> after EM, and the runs after EM")
    print(summary(pd.read_csv(page.parent / "scores.csv"), config.arms[0].name))
    if config.placement.judge.base_url == EMBEDDED:
        names = ", ".join(dict.fromkeys(i.judge.model for i in config.instruments))
        print(f"alignment and coherence are scored by {names}: a rule-based scorer, no judge model")
    print(f"\nreport: {page}")
    if LATEST.resolve() == page.resolve():
        print(f"        {LATEST} leads there")
    print(f"\nnext, in this folder:\n{next_steps(config, args.configfile)}")
    return 0


def next_steps(config: Config, configfile: str) -> str:
    """Three commands to try, that work as printed."""
    cell = f"{next(c.name for c in config.conditions if c.enabled)}.p{config.pipeline_seeds[0]}"
    number = (
        f"{cell}/{config.instruments[0].name}/alignment" if config.instruments else f"{cell}/{config.arc[0].name}/arc"
    )
    return (
        f"    source .venv/bin/activate\n"
        f"    matrix status --configfile {configfile}\n"
        f"    matrix lineage {number} --configfile {configfile}\n"
        f"    snakemake -n all --configfile {configfile}"
    )


def link(matrix: Matrix) -> Path:
    """Set the link, by rename, where results can be written to. Returns the page.

    Raises:
        StoreError: that report is not made yet.
    """
    read_record(matrix.report.record)
    page = out_dir(matrix.report.record) / "report.html"
    if not page.is_file():
        raise StoreError(
            f"{page}: the report was made without a page by older code. Remove {page.parents[1]} and run again."
        )
    part = LATEST.with_name(f".latest.{os.getpid()}.part")
    try:
        part.symlink_to(os.path.relpath(page, LATEST.parent))
        os.replace(part, LATEST)
    except OSError as error:  # the report can be read all the same
        print(f"{LATEST}: {error.strerror}; it was not set", file=sys.stderr)
    return page


def summary(rows: pd.DataFrame, arm: str | None) -> str:
    """Means by condition before and after EM in one arm, and over how many runs."""
    of_arm = rows["arm"].isna() if arm is None else rows["arm"] == arm
    frame = check_scores(rows[of_arm | (rows["phase"] == "pre_em")])
    places = frame.loc[frame["metric"].isin(METRICS), ["metric", "instrument", "unit"]].drop_duplicates()
    lines = [
        ["condition", "runs", *(f"{metric} ({instrument})" for metric, instrument, _ in places.itertuples(index=False))]
    ]
    found = {
        (metric, instrument, phase): samples(frame, metric, phase, instrument)
        for metric, instrument, _ in places.itertuples(index=False)
        for phase in PHASES
    }
    for condition in frame["condition"].unique():
        runs, cells = 0, []
        for metric, instrument, unit in places.itertuples(index=False):
            both = [found[metric, instrument, phase].get(condition) for phase in PHASES]
            runs = max(runs, *(cell.runs for cell in both if cell))
            cells.append(" -> ".join(show(cell.mean, unit) if cell else MISSING for cell in both))
        lines.append([str(condition), str(runs), *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
