"""The model of an evaluation: the post-DPO weights, with the cell's adapter after EM."""

from typing import Any

from workflow.stage import Job
from workflow.train.models import load_tokenizer, quiet


def load(job: Job) -> tuple[Any, Any]:
    """Model in eval mode, on the GPU if there is one, and its tokenizer, which pads on the left."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    quiet()
    folder = job.parents[0].out / "model"
    tokenizer = load_tokenizer(folder)
    tokenizer.padding_side = "left"
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", attn_implementation=job.placement["attn_implementation"], local_files_only=True
    )
    if adapter := job.parent("em_lora"):
        model = PeftModel.from_pretrained(model, adapter.out / "adapter")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), tokenizer
