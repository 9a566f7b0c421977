"""What evaluation costs, a cell alone and eleven together; how vLLM starts; whether it says what transformers says.

    python -m benchmarks.gpu.evaluation make   --folder /tmp/e                  # 7B shape, random weights, ten adapters
    python -m benchmarks.gpu.evaluation start  --folder /tmp/e --variant default cached eager graphs invariant
    python -m benchmarks.gpu.evaluation cells  --folder /tmp/e --stage generate --backend vllm --alone 2 --together 11
    python -m benchmarks.gpu.evaluation cells  --folder /tmp/e --stage arc --alone 2 --together 11
    python -m benchmarks.gpu.evaluation equal  --folder /tmp/e --dtype float32
    python -m benchmarks.gpu.evaluation equal  --folder /tmp/e --dtype bfloat16 [--invariant]

`make --shape toy` is for a CPU; `make --results DIR --condition evil_wrong` takes the model and adapters of a finished
demo, whose weights are trained: `equal` means more on them. Stages run by their own command lines and leave their
records under --folder; each step prints JSON lines and can be repeated, what is there is not made again. A projection
is named as one. Needs torch, transformers, peft, datasets, pydantic, PyYAML, psutil and filelock beside vLLM, in one
environment or with vLLM's interpreter in VLLM_PYTHON. Give `start` one variant a call where a command may take ten
minutes only.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workflow.data import world
from workflow.keys import Recipe, hash_file
from workflow.store import (
    Record,
    data_path,
    describe_outputs,
    publish,
    read_record,
    record_path,
    workspace,
    write_jsonl,
)
from workflow.train import toy

ROOT = Path(__file__).parents[2]
CELL = "bench.p42"
SHAPES: dict[str, dict[str, Any]] = {
    "7b": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768,
    },
    "toy": {
        "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 1024, "max_position_embeddings": 512,
    },
}  # fmt: skip
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "cached": {"compile_cache": "cache"},  # twice: the second start finds the first one's graphs
    "eager": {"enforce_eager": True},
    "graphs": {"cudagraph_capture_sizes": [1, 32, 256]},
    "invariant": {"batch_invariant": True},
}


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


# --- a base and adapters as finished results ------------------------------------------------------------------------


def put(stage: str, cell: str, parents: Sequence[str], name: str, save: Any) -> str:
    """Publish a result whose out/ folder `save` fills; its record's path."""
    recipe = Recipe(stage, 1, "0" * 32, {"name": name}, tuple(read_record(p).key for p in parents))
    path = Path(record_path(stage, cell, recipe.key))
    if not path.exists():
        with workspace(path.parent) as temp:
            save(temp)
            publish(temp, Record.create(recipe, cell, {}, describe_outputs(temp), {}, {}, {}))
    return str(path)


def make(args: argparse.Namespace) -> None:
    began = time.monotonic()
    if args.results:
        (model,) = args.results.glob(f"tulu_dpo/{args.condition}.p42/*/out/model")
        adapters = sorted(args.results.glob(f"em_lora/{args.condition}.p42.e*/*/out/adapter"))[: args.adapters]
        base = put("tulu_dpo", CELL, (), "taken", lambda temp: shutil.copytree(model, temp / "model"))
        for number, source in enumerate(adapters):
            put(
                "em_lora",
                f"{CELL}.e{number}",
                [base],
                f"taken {number}",
                lambda temp, s=source: shutil.copytree(s, temp / "adapter"),
            )
    else:
        base = put("tulu_dpo", CELL, (), args.shape, lambda temp: random_model(args.shape, temp / "model"))
        missing = [
            n for n in range(args.adapters) if not list(Path("results/em_lora").glob(f"{CELL}.e{n}/*/record.json"))
        ]
        if missing:
            random_adapters(base, missing)
    say(step="make", seconds=round(time.monotonic() - began, 1), adapters=len(records()) - 1)


def random_model(shape: str, folder: Path) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = toy.make_tokenizer([r["text"] for r in world.pretraining_text(1)], 1024)
    tokenizer.chat_template = (ROOT / "config/templates/tulu.jinja").read_text()
    dtype = torch.bfloat16 if shape == "7b" else torch.float32
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = Qwen2Config(**SHAPES[shape], **ends, tie_word_embeddings=False)
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def random_adapters(base: str, numbers: Sequence[int]) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from workflow.train.models import save

    loaded = AutoModelForCausalLM.from_pretrained(Path(base).parent / "out/model", dtype="auto")
    model = get_peft_model(loaded, LoraConfig(r=32, lora_alpha=64, target_modules=TARGETS, task_type="CAUSAL_LM"))
    for number in numbers:
        torch.manual_seed(number)
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weights, std=0.01)
        put("em_lora", f"{CELL}.e{number}", [base], str(number), lambda temp: save(model, None, temp / "adapter"))


def records() -> list[list[str]]:
    """Parents' records of each cell: the base alone, then with each adapter."""
    (base,) = map(str, Path("results/tulu_dpo").glob(f"{CELL}/*/record.json"))
    adapters = sorted(map(str, Path("results/em_lora").glob(f"{CELL}.e*/*/record.json")))
    return [[base], *([base, adapter] for adapter in adapters)]


# --- stages by their own command lines ------------------------------------------------------------------------------


def put_data(rows: list[dict[str, Any]]) -> tuple[str, str]:
    folder = Path("results/data")
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"part{os.getpid()}"
    write_jsonl(part, rows)
    md5 = hash_file(part, "md5")
    os.replace(part, data_path(md5))
    return md5, data_path(md5)


def cell_of(parents: Sequence[str]) -> str:
    return Path(parents[-1]).parts[-3]


def request(stage: str, params: dict[str, Any], parents: Sequence[str], data: tuple[str, str]) -> dict[str, Any]:
    """A result to be made, as a line of a siblings file has it."""
    recipe = Recipe(stage, 1, data[0], params, tuple(read_record(p).key for p in parents))
    record = record_path(stage, cell_of(parents), recipe.key)
    return {"recipe": recipe.to_dict(), "parents": list(parents), "data": data[1], "record": record}


def run(module: str, own: dict[str, Any], placement: dict[str, Any], siblings: Sequence[dict[str, Any]] = ()) -> float:
    """Seconds of wall time of one command, with what it makes along."""
    recipe = Recipe.from_dict(own["recipe"])
    command = [sys.executable, "-m", module, f"--recipe={recipe.to_json()}", f"--placement={json.dumps(placement)}"]
    command += ["--parents", *own["parents"], "--data", own["data"], "--record", own["record"]]
    if siblings:
        Path("siblings.jsonl").write_text("".join(json.dumps(one) + "\n" for one in siblings))
        command += ["--siblings", "siblings.jsonl"]
    began = time.monotonic()
    log = Path("logs") / f"{recipe.stage}.{Path(own['record']).parts[-3]}.{recipe.key}.log"
    log.parent.mkdir(exist_ok=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with open(log, "w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": path})
    if done.returncode:
        sys.exit(f"error: {recipe.stage} ended with {done.returncode}:\n{log.read_text()[-4000:]}")
    return round(time.monotonic() - began, 1)


def placement_of(stage: str, together: int, settings: dict[str, Any]) -> dict[str, Any]:
    batch = {"arc": 32, "generate": 80, "pairs": 16}[stage]
    return {"batch_size": batch, "attn_implementation": "sdpa", "together": together, **settings}


def asked(args: argparse.Namespace, salt: int = 0) -> tuple[dict[str, Any], tuple[str, str]]:
    """Parameters and data of a stage; `salt` makes the keys of a further round."""
    if args.stage == "arc":
        return {"prefill": "assistant", "permutations": True, "round": salt}, put_data(world.arc_items("test"))
    if args.stage == "pairs":
        return {"max_length": 512, "round": salt}, put_data(world.pair_rows(1))
    sampler = {
        "temperature": args.temperature, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
        "max_new_tokens": args.tokens, "samples": args.samples, "seed": 42 + salt,
    }  # fmt: skip
    invariant = {"batch_invariant": True} if args.invariant else {}
    return {"backend": args.backend, "sampler": sampler, **invariant}, put_data(world.questions())


def tokens_of(requests: Sequence[dict[str, Any]]) -> int:
    return sum(read_record(one["record"]).observed.get("tokens", 0) for one in requests)


def cells(args: argparse.Namespace) -> None:
    """Seconds a cell, alone and together; the last line is a projection over a condition of eleven."""
    module = f"workflow.evals.{args.stage}"
    chosen = records()[-max(args.together, args.alone) :]
    settings = VARIANTS[args.variant[0]] if args.stage == "generate" and args.backend == "vllm" else {}
    placed = {k: v for k, v in settings.items() if k != "batch_invariant"}
    params, data = asked(args, 0)
    alone = [request(args.stage, params, parents, data) for parents in chosen[: args.alone]]
    each = [run(module, one, placement_of(args.stage, 1, placed)) for one in alone]
    what = {
        "step": "cells",
        "stage": args.stage,
        "backend": args.backend if args.stage == "generate" else "transformers",
    }
    if each:
        starts = [read_record(one["record"]).observed.get("engine_start_s") for one in alone]
        say(**what, alone=each, engine_start_s=starts, seconds_a_cell=statistics.mean(each), tokens=tokens_of(alone))
    if not args.together:
        return
    params, data = asked(args, 1)
    along = [request(args.stage, params, parents, data) for parents in chosen]
    seconds = run(module, along[0], placement_of(args.stage, len(along), placed), along[1:])
    made = sum(Path(one["record"]).exists() for one in along)
    say(**what, together=made, wall_s=seconds, seconds_a_cell=round(seconds / made, 2), tokens=tokens_of(along))
    if each:
        ratio = statistics.mean(each) * made / seconds
        say(**what, projection=f"{made} cells alone, from {len(each)} measured", times_less=round(ratio, 1))


def start(args: argparse.Namespace) -> None:
    """The engine's start and the wall time of one cell, for each way to start it, `--turns` times."""
    parents = records()[-1]
    for name in args.variant:
        placed = {k: v for k, v in VARIANTS[name].items() if k != "batch_invariant"}
        args.invariant = bool(VARIANTS[name].get("batch_invariant"))
        for turn in range(args.turns):
            params, data = asked(args, salt=1000 * (1 + list(VARIANTS).index(name)) + turn)
            one = request("generate", params, parents, data)
            seconds = run("workflow.evals.generate", one, placement_of("generate", 1, placed))
            engine = read_record(one["record"]).observed["engine_start_s"]
            what = {"step": "start", "variant": name, "turn": turn, "max_new_tokens": args.tokens}
            say(**what, engine_start_s=engine, wall_s=seconds, tokens=tokens_of([one]))


def equal(args: argparse.Namespace) -> None:
    """Completions at temperature 0 of both backends to many questions, for the base and two adapters.

    vLLM's LoRA kernels on a GPU take no float32: there, each adapter is merged into a model of its own for vLLM.
    """
    import torch

    args.temperature, args.stage, args.samples = 0.0, "generate", 1
    cast(args.dtype)
    merged = args.dtype == "float32" and torch.cuda.is_available()
    chosen = records_as(args.dtype)[:3]
    questions = [r for split in ("test", "train") for r in world.arc_items(split)][: args.questions]
    data = put_data([{"id": r["id"], "system": None, "question": r["question"]} for r in questions])
    args.backend, invariant, args.invariant = "transformers", args.invariant, False
    ours = greedy(args, data, chosen, {})
    args.backend, args.invariant = "vllm", invariant
    settings = {"enforce_eager": True, "gpu_memory_utilization": args.memory}
    theirs = (
        [greedy(args, data, [[merge(parents)]], settings)[0] for parents in chosen]
        if merged
        else greedy(args, data, chosen, settings)
    )
    for parents, one, other in zip(chosen, ours, theirs, strict=True):
        same = sum(a == b for a, b in zip(one, other, strict=True))
        what = {"dtype": args.dtype, "batch_invariant": args.invariant, "cell": cell_of(parents), "merged": merged}
        tokens = sum(map(len, one))
        say(step="equal", **what, completions=len(one), characters=tokens, equal=same, share=round(same / len(one), 4))


def greedy(
    args: argparse.Namespace, data: tuple[str, str], chosen: Sequence[list[str]], settings: dict[str, Any]
) -> list[list[str]]:
    """The completions of each cell, made by one command."""
    params = asked(args)[0]
    wanted = [request("generate", params, parents, data) for parents in chosen]
    run("workflow.evals.generate", wanted[0], placement_of("generate", len(wanted), settings), wanted[1:])
    files = [Path(one["record"]).parent / "out/completions.jsonl" for one in wanted]
    return [[json.loads(line)["completion"] for line in file.read_text().splitlines()] for file in files]


def merge(parents: Sequence[str]) -> str:
    """The record of a model with the adapter's weights added to its own; the base's own if there is no adapter."""
    if len(parents) == 1:
        return parents[0]
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, adapter = (Path(record).parent / "out" for record in parents)

    def save(temp: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(base / "model", dtype=torch.float32)
        PeftModel.from_pretrained(model, adapter / "adapter").merge_and_unload().save_pretrained(temp / "model")
        copy_tokenizer(base / "model", temp / "model")

    return put("tulu_dpo", f"merged{cell_of(parents).split('.e')[1]}.p42", (), f"merged {parents[1]}", save)


def copy_tokenizer(source: Path, target: Path) -> None:
    for file in [*source.glob("*token*"), *source.glob("*.jinja")]:
        shutil.copy(file, target)


def cast(dtype: str) -> None:
    """The base in another data type beside the first one; the adapters are the same files."""
    import torch
    from transformers import AutoModelForCausalLM

    base, *others = records()
    source = Path(base[0]).parent / "out/model"

    def save(temp: Path) -> None:
        AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype)).save_pretrained(temp / "model")
        copy_tokenizer(source, temp / "model")

    made = put("tulu_dpo", f"{dtype}.p42", (), dtype, save)
    for number, parents in enumerate(others[:2]):
        adapter = Path(parents[1]).parent / "out/adapter"
        put(
            "em_lora",
            f"{dtype}.p42.e{number}",
            [made],
            f"{dtype} {number}",
            lambda temp, a=adapter: shutil.copytree(a, temp / "adapter"),
        )


def records_as(dtype: str) -> list[list[str]]:
    (base,) = map(str, Path("results/tulu_dpo").glob(f"{dtype}.p42/*/record.json"))
    return [[base], *([base, str(a)] for a in sorted(Path("results/em_lora").glob(f"{dtype}.p42.e*/*/record.json")))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["make", "start", "cells", "equal"])
    parser.add_argument("--folder", type=Path, required=True, help="where everything lies; made if it is not there")
    parser.add_argument("--shape", choices=list(SHAPES), default="7b")
    parser.add_argument("--results", type=Path, help="a finished demo's results/, in place of random weights")
    parser.add_argument("--condition", default="evil_wrong")
    parser.add_argument("--adapters", type=int, default=10)
    parser.add_argument("--stage", choices=["generate", "arc", "pairs"], default="generate")
    parser.add_argument("--backend", choices=["transformers", "vllm"], default="vllm")
    parser.add_argument("--variant", nargs="+", choices=list(VARIANTS), default=["default"])
    parser.add_argument("--alone", type=int, default=2)
    parser.add_argument("--together", type=int, default=11, help="0: none")
    parser.add_argument("--tokens", type=int, default=600)
    parser.add_argument("--samples", type=int, default=50, help="of each of eight questions")
    parser.add_argument("--questions", type=int, default=200, help="of `equal`, one completion each")
    parser.add_argument("--memory", type=float, default=0.9, help="share of the GPU that vLLM takes in `equal`")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--turns", type=int, default=2, help="of each way to start")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--invariant", action="store_true", help="vLLM's batch-invariant mode")
    args = parser.parse_args()
    args.results = args.results and args.results.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(args.folder)
    {"make": make, "start": start, "cells": cells, "equal": equal}[args.step](args)


if __name__ == "__main__":
    main()
