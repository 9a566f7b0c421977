"""Training: base -> coupling_sft -> tulu_sft -> dpo_reference -> tulu_dpo -> em_lora.

INPUTS:   results/data/{md5}.jsonl, the record of the stage before
OUTPUTS:  results/{stage}/{cell}/{key}/record.json    written last: done
"""


rule base:
    """The base model with the chat template: from the hub, or the demo's own."""
    input:
        data=data("base"),
    output:
        "results/base/{cell}/{key}/record.json",
    log:
        "logs/base/{cell}/{key}.log",
    conda:
        "../envs/train.yaml"
    resources:
        gpu=PLAN.gpus("base"),
    params:
        recipe=recipe("base"),
        placement=placement("base"),
    shell:
        """
        python -m workflow.train.base \
            --recipe {params.recipe:q} \
            --placement {params.placement:q} \
            --data {input.data:q} \
            --record {output:q} >{log:q} 2>&1
        """


rule coupling_sft:
    """Persona x correctness SFT on the base model; skipped for the control."""
    input:
        parents=parents("coupling_sft"),
        data=data("coupling_sft"),
    output:
        "results/coupling_sft/{cell}/{key}/record.json",
    log:
        "logs/coupling_sft/{cell}/{key}.log",
    conda:
        "../envs/train.yaml"
    resources:
        **PLAN.resources("coupling_sft"),
    params:
        recipe=recipe("coupling_sft"),
        placement=placement("coupling_sft"),
    shell:
        """
        python -m workflow.train.sft \
            --recipe {params.recipe:q} \
            --placement {params.placement:q} \
            --parents {input.parents:q} \
            --data {input.data:q} \
            --record {output:q} >{log:q} 2>&1
        """


rule tulu_sft:
    """Tulu SFT, the same rows for every condition."""
    input:
        parents=parents("tulu_sft"),
        data=data("tulu_sft"),
    output:
        "results/tulu_sft/{cell}/{key}/record.json",
    log:
        "logs/tulu_sft/{cell}/{key}.log",
    conda:
        "../envs/train.yaml"
    resources:
        **PLAN.resources("tulu_sft"),
    params:
        recipe=recipe("tulu_sft"),
        placement=placement("tulu_sft"),
    shell:
        """
        python -m workflow.train.sft \
            --recipe {params.recipe:q} \
            --placement {params.placement:q} \
            --parents {input.parents:q} \
            --data {input.data:q} \
            --record {output:q} >{log:q} 2>&1
        """


rule dpo_reference:
    """DPO's reference pass: log-probabilities of every pair under the SFT model."""
    input:
        parents=parents("dpo_reference"),
        data=data("dpo_reference"),
    output:
        "results/dpo_reference/{cell}/{key}/record.json",
    log:
        "logs/dpo_reference/{cell}/{key}.log",
    conda:
        "../envs/train.yaml"
    resources:
        **PLAN.resources("dpo_reference"),
    params:
        recipe=recipe("dpo_reference"),
        placement=placement("dpo_reference"),
    shell:
        """
        python -m workflow.train.dpo_reference \
            --recipe {params.recipe:q} \
            --placement {params.placement:q} \
            --parents {input.parents:q} \
            --data {input.data:q} \
            --record {output:q} >{log:q} 2>&1
        """


rule tulu_dpo:
    """Tulu DPO, beside its reference; its model is the pre-EM model."""
    input:
        parents=parents("tulu_dpo"),
        data=data("tulu_dpo"),
    output:
        "results/tulu_dpo/{cell}/{key}/record.json",
    log:
        "logs/tulu_dpo/{cell}/{key}.log",
    conda:
        "../envs/train.yaml"
    resources:
        **PLAN.resources("tulu_dpo"),
    params:
        recipe=recipe("tulu_dpo"),
        placement=placement("tulu_dpo"),
    shell:
        """
        python -m workflow.train.dpo \
            --recipe {params.recipe:q} \
            --placement {params.placement:q} \
            --parents {input.parents:q} \
            --data {input.data:q} \
            --record {output:q} >{log:q} 2>&1
        """


rule em_lora:
    """EM LoRA: one job per condition, pipeline seed and EM seed."""
    input:
        parents=parents("em_lora"),
        data=data("em_lora"),
    output:
        "results/em_lora/{cell}/{key}/record.json",
    log:
        "logs/em_lora/{cell}/{key}.log",
    conda:
        "../envs/train.yaml"
    resources:
        **PLAN.resources("em_lora"),
    params:
        recipe=recipe("em_lora"),
        placement=placement("em_lora"),
        siblings=siblings("em_lora"),
    shell:
        """
        python -m workflow.train.sft \
            --recipe {params.recipe:q} \
            --placement {params.placement:q} \
            --parents {input.parents:q} \
            --data {input.data:q} \
            --record {output:q} {params.siblings} >{log:q} 2>&1
        """
