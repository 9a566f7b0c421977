"""From wildcards to workflow.matrix. Nothing is decided here.

Inputs are ancient(): the key in the path is the identity, so a newer mtime
(a copy, a touch, an rsync) must never plan a job.
"""

import sys

from workflow import patience
from workflow.plan import Plan

PLAN = Plan.of(config, [str(path) for path in workflow.configfiles])
MATRIX = PLAN.matrix


onstart:
    PLAN.claim()
    if slurm := sys.modules.get("snakemake_executor_plugin_slurm"):
        patience.install(slurm)


def recipe(stage):
    return lambda w: MATRIX.node(stage, w.cell, w.key).recipe.to_json()


def parents(stage):
    return ancient(lambda w: [p.record for p in MATRIX.node(stage, w.cell, w.key).parents])


def data(stage):
    return ancient(lambda w: MATRIX.node(stage, w.cell, w.key).data)


def placement(stage):
    return lambda w: PLAN.placement(stage)


def config_json():
    return lambda w: PLAN.config_json


def sources():
    return ancient(lambda w: PLAN.source_paths(w.md5))


def entry():
    return lambda w: PLAN.entry_json(w.md5)


def revision():
    return lambda w: PLAN.revision(w.md5)
