"""The coupling matrix: conditions x seeds, from pinned data to a report.

The graph is workflow/matrix.py; the rules say how each node is made.
"""

from snakemake.utils import min_version

min_version("9.0")


# Named only if no --configfile was given: Snakemake would merge the two.
if not workflow.configfiles:

    configfile: workflow.current_basedir.join("config/config.yaml").get_path_or_uri(secret_free=True)


wildcard_constraints:
    cell=r"[a-z][a-z0-9_]*(\.p\d+)?(\.[a-z][a-z0-9_]*)?(\.e\d+)?(\.r\d+)?",
    key=r"(rev|tbd)?[0-9a-f]{8}-[0-9a-f]{12}",
    md5=r"[0-9a-f]{32}|rev-[0-9a-f]{40}-[0-9a-f]{8}|tbd-[0-9a-f]{32}",


localrules:
    all,
    data,
    latest,


include: "rules/common.smk"


# A login node reaches the hub; compute nodes often do not.
if PLAN.config.base_model.kind == "hub":

    localrules:
        base,


include: "rules/data.smk"
include: "rules/train.smk"
include: "rules/eval.smk"
include: "rules/report.smk"


rule all:
    """Every record of the matrix, the report's among them, and the report's stable copy."""
    default_target: True
    input:
        MATRIX.records(),
        f"results/report/{MATRIX.report.label}/latest.html",
