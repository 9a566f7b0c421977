"""The report: one node, keyed by every number's key and by what is said about them.

INPUTS:   every arc and judge record of the plan
OUTPUTS:  results/report/{cell}/{key}/record.json    beside it out/report.html
          results/report/{cell}/latest.html           the copy whose path stays
"""


rule report:
    """Scores, tables, figures and the page."""
    input:
        parents=parents("report"),
    output:
        "results/report/{cell}/{key}/record.json",
    log:
        "logs/report/{cell}/{key}.log",
    conda:
        "../envs/report.yaml"
    params:
        config=config_json(),
    shell:
        """
        python -m workflow.report.report \
            --config {params.config:q} \
            --record {output:q} >{log:q} 2>&1
        """


rule latest:
    """The report's stable copy: page, pages of cells, numbers, verdicts, figures. It moves with the plan's key."""
    input:
        record=planned_report(),
    output:
        page=report(
            "results/report/{cell}/latest.html",
            caption="../docs/report/page.rst",
            category="Report",
            labels={"what": "the whole report"},
        ),
        scores=report(
            "results/report/{cell}/latest.csv",
            caption="../docs/report/scores.rst",
            category="Numbers",
            labels={"what": "every number"},
        ),
        claims="results/report/{cell}/latest.json",
        figures=report(
            directory("results/report/{cell}/figures"),
            patterns=["{figure}.svg"],
            caption="../docs/report/figures.rst",
            category="Figures",
            labels={"what": "{figure}"},
        ),
    log:
        "logs/report/{cell}/latest.log",
    conda:
        "../envs/report.yaml"
    params:
        config=config_json(),
    shell:
        """
        python -m workflow.report.report \
            --config {params.config:q} \
            --publish >{log:q} 2>&1
        """
