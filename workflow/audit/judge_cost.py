"""What judging would take before anything is asked: `python -m workflow judge-cost`.

Exact in requests for completions that are there; for those that are not, the sampler says how many there will be, and
their length is taken from the ones that are.
"""

from pathlib import Path
from typing import Any, NamedTuple

from workflow.data.rows import read_prompts, read_questions
from workflow.judge.client import estimate
from workflow.judge.judge import endpoint_at, settings_of
from workflow.judge.transport import Endpoint
from workflow.matrix import Matrix, Node
from workflow.store import out_dir, read_jsonl


class Cost(NamedTuple):
    """Of one instrument: cells to judge, and of how many the completions are there; tokens are guessed at 4 bytes."""

    instrument: str
    model: str
    cells: int
    measured: int
    requests: int
    tokens_in: int
    tokens_out_at_most: int
    usd: float


def judge_cost(matrix: Matrix) -> list[Cost]:
    """Costs of the judgments that are missing, by instrument; none for an instrument that is judged throughout."""
    found = []
    for judge, name in ((j, i.of(j)) for i in matrix.config.instruments for j in (i.judge, *i.panel)):
        endpoint = endpoint_at("http://localhost/v1", matrix.config.placement.judge.of(judge.model))
        missing = [n for n in matrix.nodes("judge") if n.instrument == name and not Path(n.record).exists()]
        told = [t for t in (_of_cell(n, endpoint) for n in missing) if t is not None]
        if not missing:
            continue
        share = len(missing) / len(told) if told else 0.0
        requests, tokens_in, tokens_out = (
            round(share * sum(t[name] for t in told)) for name in ("requests", "tokens_in", "tokens_out_at_most")
        )
        if not told:
            requests = _requests(missing[0]) * len(missing)
        usd = endpoint.usd(tokens_in, tokens_out)
        found.append(Cost(name, judge.model, len(missing), len(told), requests, tokens_in, tokens_out, usd))
    return found


def _of_cell(node: Node, endpoint: Endpoint) -> dict[str, Any] | None:
    """The estimate for a cell whose completions and prompts are there."""
    completions = out_dir(node.parents[0].record) / "completions.jsonl"
    prompts = Path(node.data[0])
    if not completions.is_file() or not prompts.is_file():
        return None
    return estimate(read_jsonl(completions), read_prompts(prompts), settings_of(node.recipe.params), endpoint)


def _requests(node: Node) -> int:
    """Requests of a cell without completions, from the sampler; 0 if the questions are not fetched."""
    generate = node.parents[0]
    questions, prompts = Path(generate.data[0]), Path(node.data[0])
    if not questions.is_file() or not prompts.is_file():
        return 0
    each = len(read_prompts(prompts))
    return len(read_questions(questions)) * generate.recipe.params["sampler"]["samples"] * each
