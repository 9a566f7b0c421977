"""How fast ARC is scored: `REAL_DATA=DIR python -m benchmarks.arc`, with DIR/arc/arc_challenge_test.jsonl in it.

The 1172 items of the test split on a random model of the demo's shape, so that what is measured is the scoring around
the model as much as the model. Prints one JSON line per batch size: items a second and the largest difference of a
log-probability from the first batch size's.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from workflow.data.rows import read_items
from workflow.evals import arc
from workflow.train import toy

ROOT = Path(__file__).parents[1]
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "initializer_range": 0.3,  # at the default 0.02 every distribution is nearly flat, and differences vanish
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 1, 8, 128])
    parser.add_argument("--permutations", action="store_true", help="every rotation of each item's options")
    args = parser.parse_args()
    if not (folder := os.environ.get("REAL_DATA")):
        sys.exit("error: set REAL_DATA to the folder that holds arc/arc_challenge_test.jsonl")
    items = read_items(Path(folder) / "arc/arc_challenge_test.jsonl")
    turned = [one for item in items for one in (arc.rotations(item) if args.permutations else [item])]
    tokenizer: Any = toy.make_tokenizer((item.prompt() + arc.LEAD for item in items), 1024)
    tokenizer.chat_template = (ROOT / "config/templates/tulu.jinja").read_text()
    tokenizer.padding_side = "left"
    model = toy.make_model(SHAPE, tokenizer, 42).eval()
    prompts = [arc.render(one, tokenizer, "assistant") for one in turned]
    letters = arc.letter_tokens(tokenizer, prompts[0], "ABCDE")
    first: list[dict[str, float]] = []
    for size in args.batch_sizes:
        began = time.perf_counter()
        scores = arc.score(model, tokenizer, prompts, letters, size)
        seconds = time.perf_counter() - began
        first = first or scores
        apart = max(abs(a[c] - b[c]) for a, b in zip(first, scores, strict=True) for c in letters)
        line = {
            "items": len(items),
            "prompts": len(prompts),
            "batch_size": size,
            "seconds": round(seconds, 2),
            "items_per_s": round(len(items) / seconds, 1),
            "largest_difference": apart,
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
