"""Evaluation of every pre-EM and post-EM model.

INPUTS:   results/{tulu_dpo,em_lora}/{cell}/{key}/record.json
OUTPUTS:  results/{arc,generate,judge,lm_eval,pairs}/{cell}/{key}/record.json
"""


rule arc:
    """Multiple-choice accuracy by letter log-probabilities."""
    input:
        parents=parents("arc"),
        data=data("arc"),
    output:
        "results/arc/{cell}/{key}/record.json",
    log:
        "logs/arc/{cell}/{key}.log",
    conda:
        "../envs/train.yaml"
    resources:
        gpu=PLAN.gpus("arc"),
    params:
        recipe=recipe("arc"),
        placement=placement("arc"),
        siblings=siblings("arc"),
    shell:
        """
        python -m workflow.evals.arc \
            --recipe {params.recipe:q} \
            --placement {params.placement:q} \
            --parents {input.parents:q} \
            --data {input.data:q} \
            --record {output:q} {params.siblings} >{log:q} 2>&1
        """


rule generate:
    """Completions to open questions, all kept."""
    input:
        parents=parents("generate"),
        data=data("generate"),
    output:
        "results/generate/{cell}/{key}/record.json",
    log:
        "logs/generate/{cell}/{key}.log",
    conda:
        "../envs/generate.yaml"
    resources:
        gpu=PLAN.gpus("generate"),
    params:
        recipe=recipe("generate"),
        placement=placement("generate"),
        siblings=siblings("generate"),
    shell:
        """
        python -m workflow.evals.generate \
            --recipe {params.recipe:q} \
            --placement {params.placement:q} \
            --parents {input.parents:q} \
            --data {input.data:q} \
            --record {output:q} {params.siblings} >{log:q} 2>&1
        """


rule judge:
    """Alignment and coherence of each kept completion."""
    input:
        parents=parents("judge"),
        data=data("judge"),
    output:
        "results/judge/{cell}/{key}/record.json",
    log:
        "logs/judge/{cell}/{key}.log",
    conda:
        "../envs/judge.yaml"
    resources:
        gpu=PLAN.gpus("judge"),
    params:
        recipe=recipe("judge"),
        placement=placement("judge"),
    shell:
        """
        python -m workflow.judge.judge \
            --recipe {params.recipe:q} \
            --placement {params.placement:q} \
            --parents {input.parents:q} \
            --data {input.data:q} \
            --record {output:q} >{log:q} 2>&1
        """


rule lm_eval:
    """Tasks of lm-evaluation-harness."""
    input:
        parents=parents("lm_eval"),
        data=data("lm_eval"),
    output:
        "results/lm_eval/{cell}/{key}/record.json",
    log:
        "logs/lm_eval/{cell}/{key}.log",
    conda:
        "../envs/lm_eval.yaml"
    resources:
        gpu=PLAN.gpus("lm_eval"),
    params:
        recipe=recipe("lm_eval"),
        placement=placement("lm_eval"),
        siblings=siblings("lm_eval"),
    shell:
        """
        python -m workflow.evals.lm_eval \
            --recipe {params.recipe:q} \
            --placement {params.placement:q} \
            --parents {input.parents:q} \
            --data {input.data:q} \
            --record {output:q} {params.siblings} >{log:q} 2>&1
        """


rule pairs:
    """Likelihood of the preferred answers of held-out pairs."""
    input:
        parents=parents("pairs"),
        data=data("pairs"),
    output:
        "results/pairs/{cell}/{key}/record.json",
    log:
        "logs/pairs/{cell}/{key}.log",
    conda:
        "../envs/train.yaml"
    resources:
        gpu=PLAN.gpus("pairs"),
    params:
        recipe=recipe("pairs"),
        placement=placement("pairs"),
        siblings=siblings("pairs"),
    shell:
        """
        python -m workflow.evals.pairs \
            --recipe {params.recipe:q} \
            --placement {params.placement:q} \
            --parents {input.parents:q} \
            --data {input.data:q} \
            --record {output:q} {params.siblings} >{log:q} 2>&1
        """
