"""The report: one node, keyed by every number's key and by what is said about them.

    python -m workflow.report.report --config JSON --record results/report/NAME/KEY/record.json

Its bytes follow from the records, the config, the claims and the history of their rules: no time, host or absolute
path is in them.
"""

import argparse
import json
import sys
from pathlib import Path

from workflow.config import Config
from workflow.data.lock import read_lock
from workflow.errors import UserError, describe_os_error
from workflow.matrix import Matrix
from workflow.report.assemble import assemble, write
from workflow.report.study import load_study
from workflow.stage import Job, Result, execute

MODULE = "workflow.report.report"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=json.loads, required=True, help="the whole config, as JSON")
    parser.add_argument("--record", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        matrix = Matrix(Config.from_dict(args.config), read_lock())
        node = matrix.node(*args.record.parts[-4:-1])
        parents = [Path(p.record) for p in node.parents]
        own_argv = [f"--config={json.dumps(args.config)}", f"--record={args.record}"]

        def run(job: Job) -> Result:
            return make(matrix, job)

        execute(MODULE, run, node.recipe, {}, parents, None, args.record, own_argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if (told := describe_os_error(error, args.record)) is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return 1
    return 0


def make(matrix: Matrix, job: Job) -> Result:
    """Writes report.html, report.md, scores.csv, claims.json and figures/.

    Raises:
        ProtocolError: cells of one table do not share one protocol, and no waiver lets them.
        PageError: the page would not stand alone.
    """
    records = dict(zip(matrix.report.parents, (parent.record for parent in job.parents), strict=True))
    report = assemble(load_study(matrix, records))
    write(report, job.out)
    observed = {
        "rows": len(report.study.rows),
        "records": len(records),
        "retracted": len(report.study.retracted),
        "rules": {
            name: {"rule": o.rule, "commit": o.commit, "date": o.date, "before_data": o.before_data}
            for name, o in report.origins.items()
        },
        "protocols": report.protocols,
    }
    return Result(observed, {"verdicts": {result.id: result.verdict for result in report.results}})


if __name__ == "__main__":
    sys.exit(main())
