"""The base model with the experiment's chat template: from the hub, from a folder, or the demo's own toy."""

import json
import shutil
from pathlib import Path
from typing import Any

from workflow.data.rows import read_text
from workflow.errors import describe_os_error
from workflow.keys import model_digest, model_files
from workflow.stage import Job, Result, StageError, stage_main
from workflow.train import gguf, models, toy
from workflow.train import trainer as shared
from workflow.train.model_files import check_model_folder

MODULE = "workflow.train.base"


def run(job: Job) -> Result:
    """Writes model/: weights, tokenizer and template, as every later stage expects them."""
    models.quiet()
    return {"toy": _make, "hub": _fetch, "local": _copy}[job.params["kind"]](job)


def _fetch(job: Job) -> Result:
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo, commit = job.params["repo"], job.recipe.data.split("-")[1]
    folder = job.out / "model"
    try:
        # no pickles: weights come as safetensors or not at all
        snapshot_download(repo, revision=commit, local_dir=folder, allow_patterns=["*.json", "*.safetensors", "*.txt"])
    except (HTTPError, LocalEntryNotFoundError, OSError) as error:
        if describe_os_error(error, folder):
            raise
        raise StageError(
            f"the base model {repo} at {commit} cannot be fetched ({type(error).__name__}). Run this stage where the "
            "hub can be reached: `snakemake --until base`."
        ) from None
    for scrap in (folder / ".cache").rglob("*"):
        if scrap.is_file():
            scrap.unlink()
    return Result({"repo": repo, "commit": commit, "template_md5": _finish(job, folder)}, {})


def _copy(job: Job) -> Result:
    """Take over a folder that lies on disk, if its files are those that were pinned."""
    source, pinned = Path(job.placement["model_path"]), job.recipe.data.split("-")[1]
    folder = job.out / "model"
    for name in model_files(source):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    if not folder.is_dir():
        raise StageError(f"base_model.path: no model in {source}. Bring the folder that was pinned.")
    if (here := model_digest(folder)) != pinned:
        raise StageError(
            f"base_model.path: the files in {source} have the digest {here}, not {pinned}, which config/data.lock.tsv "
            "names. Bring the folder that was pinned, or give the other one a `name` of its own and lock it."
        )
    return Result({"model_digest": here, **_conversion(folder), "template_md5": _finish(job, folder)}, {})


def _conversion(folder: Path) -> dict[str, Any]:
    """What `matrix dequantise` said of the file that the weights were made from."""
    file = folder / gguf.NOTE
    return {"conversion": json.loads(file.read_text())} if file.is_file() else {}


def _finish(job: Job, folder: Path) -> str:
    """Put the experiment's template in place of the model's own; the template's md5."""
    check_model_folder(folder)
    tokenizer = models.load_tokenizer(folder)
    tokenizer.chat_template = job.params["template"]
    models.check_template(tokenizer)
    tokenizer.save_pretrained(folder)
    return models.template_md5(tokenizer)


def _make(job: Job) -> Result:
    """Tokenizer and weights from the generated text, by TRL like everything else: plain language modelling."""
    from datasets import Dataset
    from transformers import PrinterCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    p = job.params
    texts = read_text(job.data)
    tokenizer = toy.make_tokenizer(texts, p["vocab_size"])
    tokenizer.chat_template = p["template"]
    models.check_template(tokenizer)
    shape = {name: p[name] for name in _SHAPE}
    model = toy.make_model(shape, tokenizer, p["seed"])
    rows = [(tokenizer(text)["input_ids"] + [tokenizer.eos_token_id])[: p["max_length"]] for text in texts]
    set_seed(p["seed"])
    with shared.scratch(job) as scratch:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=str(scratch),
                learning_rate=p["learning_rate"],
                num_train_epochs=p["num_train_epochs"],
                per_device_train_batch_size=p["batch_size"],
                max_length=p["max_length"],
                lr_scheduler_type="linear",
                warmup_steps=0.03,
                weight_decay=0.0,
                gradient_checkpointing=False,
                bf16=False,
                seed=p["seed"],
                use_cpu=True,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=Dataset.from_list([{"input_ids": ids, "labels": ids} for ids in rows]),
            processing_class=tokenizer,
        )
        models.check_can_save(model, scratch)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(shared.Progress().callback())
        trainer.train()
    models.save(model, tokenizer, job.out / "model")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    observed = {
        "rows": len(rows),
        "tokens": sum(map(len, rows)),
        "optimizer_steps": trainer.state.global_step,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(tokenizer),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "template_md5": models.template_md5(tokenizer),
    }
    return Result(observed, {})


_SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "tie_word_embeddings",
    "initializer_range",
)


if __name__ == "__main__":
    stage_main(MODULE, run)
