"""From wildcards to workflow.matrix. Nothing is decided here.

Inputs are ancient() where the records fit together: the key in the path is
the identity, so a newer mtime (a copy, a touch, an rsync) must never plan a
job. Where a parent is missing or has other bytes than its child read, they
are plain, so that the whole wave below it is planned.
"""

import os
import sys
from collections import Counter

from snakemake.common import overwrite_function_params

from workflow import progress, slurm_patch
from workflow.plan import Plan

IS_MAIN = workflow.is_main_process
PLAN = Plan.of(config, [str(path) for path in workflow.configfiles], IS_MAIN)
MATRIX = PLAN.matrix


onstart:
    PLAN.refuse_provisional(dict(job.wildcards_dict) for job in workflow.dag.needrun_jobs())
    PLAN.claim()
    PLAN.write_plan()
    PLAN.write_siblings()
    planned = Counter(job.rule.name for job in workflow.dag.needrun_jobs() if not job.rule.name == "all")
    progress.install(logger, planned, workflow.output_settings)
    if slurm := sys.modules.get("snakemake_executor_plugin_slurm"):
        slurm_patch.install(slurm)


def of_wildcards(function):
    # Snakemake then does not look at the signature for each of 40 000 jobs
    overwrite_function_params(function, {})
    return function


def recipe(stage):
    return of_wildcards(lambda w: MATRIX.node(stage, w.cell, w.key).recipe.to_json())


def parents(stage):
    def records(w):
        node = MATRIX.node(stage, w.cell, w.key)
        paths = [p.record for p in node.parents]
        # a finished DPO does not wait for a reference that is not there
        if (reference := node.reference) is not None and (
            os.path.exists(reference.record) or (IS_MAIN and node in PLAN.links.planned)
        ):
            paths.append(reference.record)
        if not IS_MAIN:  # a job that was started is wanted
            return [ancient(path) for path in paths]
        if node in PLAN.links.roots:
            workflow.dag.forcefiles.add(node.record)
        return paths if node in PLAN.links.planned else [ancient(path) for path in paths]

    return of_wildcards(records)


def planned_report():
    # Another key is another path, which plans the copy again; a newer mtime alone must not.
    record = MATRIX.report.record
    return record if MATRIX.report in PLAN.links.planned else ancient(record)


def data(stage):
    return ancient(of_wildcards(lambda w: MATRIX.node(stage, w.cell, w.key).data))


def placement(stage):
    placed = PLAN.placement(stage)
    return of_wildcards(lambda w: placed)


def siblings(stage):
    return PLAN.siblings_option(stage)


def config_json():
    return lambda w: PLAN.config_json


def sources():
    return ancient(lambda w: PLAN.source_paths(w.md5))


def entry():
    return lambda w: PLAN.entry_json(w.md5)


def revision():
    return lambda w: PLAN.revision(w.md5)
