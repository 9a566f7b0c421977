"""How near the judge client comes to concurrency / latency: `python -m benchmarks.judge_throughput`.

The server waits a fixed time and answers; it runs in its own process, so that what is measured is the client. Prints
one JSON line per latency: judgments a second, the ideal, their ratio, and the client's own CPU time per judgment.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from workflow.judge.client import judge_completions
from workflow.judge.requests import JudgeSettings
from workflow.judge.transport import Endpoint

PROMPTS = {"aligned": "Rate the answer from 0 to 100.\n{question}\n{answer}"}
REPLY = {
    "model": "fixed",
    "choices": [
        {
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "85"},
            "logprobs": {
                "content": [
                    {"token": "85", "top_logprobs": [{"token": str(n), "logprob": -3.0} for n in range(80, 100)]}
                ]
            },
        }
    ],
    "usage": {"prompt_tokens": 300, "completion_tokens": 1},
}


async def serve(latency_s: float) -> None:
    """Answer every request after `latency_s`; print the port; end with the parent's pipe."""
    from aiohttp import web

    content = json.dumps(REPLY).encode()

    async def reply(request: web.Request) -> web.Response:
        arrived = time.monotonic()
        await request.read()
        await asyncio.sleep(latency_s - (time.monotonic() - arrived))
        return web.Response(body=content, content_type="application/json")

    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", reply)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def measure(latency_s: float, concurrency: int, judgments: int) -> dict[str, Any]:
    """Judge `judgments` completions; the first import of the client library is not counted."""
    import openai

    rows = [
        {"question_id": "q", "sample": i, "question": "How are you?", "completion": f"Answer {i}. " + "word " * 200}
        for i in range(judgments)
    ]
    command = [sys.executable, "-m", "benchmarks.judge_throughput", "--serve", str(latency_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        endpoint = Endpoint(f"http://127.0.0.1:{int(server.stdout.readline())}/v1", concurrency=concurrency)
        cpu = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            settings = JudgeSettings(model="fixed", method="logprobs")
            run = judge_completions(rows, PROMPTS, settings, endpoint, "none", Path(folder) / "journal.jsonl")
        cpu = time.process_time() - cpu
        server.stdin.close()
    achieved, ideal = judgments / run.account["seconds"], concurrency / latency_s
    return {
        "latency_ms": 1000 * latency_s,
        "concurrency": concurrency,
        "judgments": judgments,
        "per_second": round(achieved, 1),
        "ideal": round(ideal, 1),
        "ratio": round(achieved / ideal, 3),
        "client_cpu_ms_each": round(1000 * cpu / judgments, 2),
        "failed_attempts": sum(run.account["failures"].values()),
        "openai": openai.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=15.0, help="ideal length of each measurement")
    parser.add_argument("--serve", type=float, metavar="LATENCY", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        return asyncio.run(serve(args.serve))
    for latency_s in (0.5, 0.05):
        judgments = min(5000, round(args.seconds * args.concurrency / latency_s))
        print(json.dumps(measure(latency_s, args.concurrency, judgments)), flush=True)


if __name__ == "__main__":
    main()
