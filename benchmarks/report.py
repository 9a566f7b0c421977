"""Measure the report: seconds of its parts and sizes of its pages, for a matrix of stand-in records.

    python -m benchmarks.report --conditions 5 --seeds 10
    python -m benchmarks.report --conditions 20 --seeds 50

Its bounds: the page of 5 x 10 under 3 MB, a cell's page under 1 MB, the job under 15 s at 5 x 10 and 60 s at 20 x 50.
"""

import argparse
import copy
import itertools
import os
import tempfile
import time
from pathlib import Path

import yaml

from tests.unit import fake_report
from workflow.report.report import assemble, write
from workflow.report.study import finished, load_study


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--conditions", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    raw = yaml.safe_load((fake_report.ROOT / "config/demo.yaml").read_text())
    coupled = raw["conditions"][1]
    extra = range(max(0, args.conditions - len(raw["conditions"])))
    raw["conditions"] = raw["conditions"][: args.conditions] + [copy.deepcopy(coupled) for _ in extra]
    sets = {d["name"]: d for d in raw["data"]}
    for n in extra:  # each on data of its own: conditions between which nothing differs are refused
        name = f"demo_coupling_more{n}"
        raw["data"].append({**sets["demo_coupling_evil_wrong"], "name": name, "seed": 1000 + n})
        raw["conditions"][5 + n] |= {"name": f"more{n}", "data": {**coupled["data"], "coupling_sft": name}}
    raw |= {"name": "benchmark", "em_seeds": list(range(1, args.seeds + 1))}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        matrix = fake_report.project(Path(folder), raw)
        fake_report.finish(matrix)
        marks = [("", time.perf_counter())]

        def mark(name: str) -> None:
            marks.append((name, time.perf_counter()))

        records = finished(matrix)
        mark("read records")
        study = load_study(matrix, records)
        mark("load study")
        report = assemble(study)
        mark("assemble")
        out = Path("results/report/benchmark/key/out")
        out.mkdir(parents=True)
        write(report, out)
        mark("write")
        for (_, start), (name, end) in itertools.pairwise(marks):
            print(f"{name:14} {end - start:6.1f} s")
        print(f"{'all':14} {marks[-1][1] - marks[0][1]:6.1f} s")
        cells = [p.stat().st_size for p in out.glob("cells/*/*.html")]
        size = (out / "report.html").stat().st_size / 1e6
        print(f"{len(records)} records; page {size:.2f} MB; {len(cells)} pages of cells, the largest ", end="")
        print(f"{max(cells) / 1e6:.2f} MB, in all {sum(cells) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
