"""The base model with the experiment's chat template: fetched from the hub at a commit, or the demo's own toy."""

from workflow.data.rows import read_text
from workflow.errors import describe_os_error
from workflow.stage import Job, Result, StageError, stage_main
from workflow.train import models, toy
from workflow.train import trainer as shared
from workflow.train.model_files import check_model_folder

MODULE = "workflow.train.base"


def run(job: Job) -> Result:
    """Writes model/: weights, tokenizer and template, as every later stage expects them."""
    models.quiet()
    return _make(job) if job.params["kind"] == "toy" else _fetch(job)


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
    check_model_folder(folder)
    tokenizer = models.load_tokenizer(folder)
    tokenizer.chat_template = job.params["template"]
    models.check_template(tokenizer)
    tokenizer.save_pretrained(folder)
    return Result({"repo": repo, "commit": commit, "template_md5": models.template_md5(tokenizer)}, {})


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
