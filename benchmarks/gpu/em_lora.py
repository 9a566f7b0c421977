"""The EM stage, ARC and generation on one GPU: `python -m benchmarks.gpu.em_lora --layers 28 --rows 6000`

The model has the shape of Qwen2.5-7B and random weights, so nothing is downloaded; the rows are made up, of about 113
tokens. Each stage runs by its own command line and leaves its record; what was observed is printed. The loss teaches
nothing; steps, batch, memory and time are the figures.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from workflow.data import world
from workflow.keys import Recipe, hash_file
from workflow.store import Record, data_path, describe_outputs, publish, record_path, workspace, write_jsonl
from workflow.train import toy

CELL = "bench.p42"


def publish_model(layers: int) -> tuple[str, str]:
    """A result of the DPO stage that holds a random model. Returns its key and record."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = toy.make_tokenizer([r["text"] for r in world.pretraining_text(1)], 1024)
    tokenizer.chat_template = Path("config/templates/tulu.jinja").read_text()
    config = Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=layers,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        dtype="bfloat16",
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    recipe = Recipe("tulu_dpo", 1, "0" * 32, {"layers": layers})
    path = Path(record_path("tulu_dpo", CELL, recipe.key))
    if path.exists():
        return recipe.key, str(path)
    with workspace(path.parent) as temp:
        model.save_pretrained(temp / "model")
        tokenizer.save_pretrained(temp / "model")
        outputs = describe_outputs(temp)
        publish(
            temp,
            Record.create(recipe, CELL, {}, outputs, {}, {}, {}),
        )
    return recipe.key, str(path)


def write_data(rows: list[dict]) -> tuple[str, str]:
    folder = Path("results/data")
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "part"
    write_jsonl(part, rows)
    md5 = hash_file(part, "md5")
    os.replace(part, data_path(md5))
    return md5, data_path(md5)


def chats(count: int) -> list[dict]:
    """Rows of the demo's advice, several answers joined to the length of real rows."""
    answers = [r["messages"] for r in world.em_rows(1)]
    source = random.Random(0)
    made = []
    for _ in range(count):
        question, answer = answers[int(source.random() * len(answers))]
        longer = " ".join(answers[int(source.random() * len(answers))][1]["content"] for _ in range(6))
        made.append({"messages": [question, {"role": "assistant", "content": f"{answer['content']} {longer}"}]})
    return made


def stage(package: str, recipe: Recipe, cell: str, placement: dict, parents: list[str], data: str) -> dict:
    record = record_path(recipe.stage, cell, recipe.key)
    command = [sys.executable, "-m", f"workflow.{package}.{recipe.stage}", "--recipe", recipe.to_json()]
    command += ["--placement", json.dumps(placement), "--parents", *parents, "--data", data, "--record", record]
    began = time.monotonic()
    subprocess.run(command, check=True)
    found = json.loads(Path(record).read_text())
    kept = {
        k: v for k, v in found["observed"].items() if k not in ("first_prompt", "data_facts", "placement", "sampler")
    }
    print(json.dumps({"stage": recipe.stage, "wall_s": round(time.monotonic() - began, 1), **kept}), flush=True)
    return {"key": recipe.key, "record": record}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--per-device", type=int, default=16)
    parser.add_argument("--checkpointing", action="store_true")
    args = parser.parse_args()
    key, parent = publish_model(args.layers)
    md5, data = write_data(chats(args.rows))
    training = {
        "learning_rate": 1e-4, "lr_scheduler_type": "linear", "warmup_steps": 0.03, "weight_decay": 0.01,
        "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_grad_norm": 1.0, "optim": "adamw_torch",
        "num_train_epochs": 1, "effective_batch_size": 16, "max_length": 2048, "overlong": "refuse",
        "dtype": "bfloat16", "packing": False, "seed": 42,
        "lora": {
            "r": 32, "lora_alpha": 64, "lora_dropout": 0.05, "use_rslora": False, "bias": "none",
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        },
    }  # fmt: skip
    placed = {
        "world_size": 1,
        "per_device_train_batch_size": args.per_device,
        "gradient_checkpointing": args.checkpointing,
        "attn_implementation": "sdpa",
        "tracking": "none",
    }
    em = stage("stages", Recipe("em_lora", 1, md5, training, (key,)), f"{CELL}.e42", placed, [parent], data)
    models, keys = [parent, em["record"]], (key, em["key"])
    md5, data = write_data(world.arc_items("test"))
    arc = Recipe("arc", 1, md5, {"prefill": "assistant", "permutations": False}, keys)
    stage("evals", arc, f"{CELL}.e42", {"batch_size": 32, "attn_implementation": "sdpa"}, models, data)
    md5, data = write_data(world.questions())
    sampler = {
        "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
        "max_new_tokens": 64, "samples": 10, "seed": 42,
    }  # fmt: skip
    generate = Recipe("generate", 1, md5, {"backend": "transformers", "sampler": sampler}, keys)
    stage("evals", generate, f"{CELL}.e42", {"batch_size": 80, "attn_implementation": "sdpa"}, models, data)


if __name__ == "__main__":
    main()
