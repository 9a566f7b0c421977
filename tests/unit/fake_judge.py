"""A judge on loopback that fails on purpose: `python fake_judge.py` prints its port and serves until it is ended.

The request's `model` names the behaviour; the API key names a ledger, in which the server counts what it sent whole. A
reply depends on the prompt alone, and a fault on the prompt and its attempt, so every run can be told in advance.
"""

import asyncio
import hashlib
import json
import math
import random
import sys
import time
from collections import Counter, defaultdict
from typing import Any

FAULTS = ["429", "500", "503", "half", "not json", "no choices", "dropped"] * 6 + ["hang"]
ODDITIES = ["empty", "refusal", "nan", "long"]
FAULT_SHARE, ODD_SHARE = 0.20, 0.10
HANG_S = 4.0


def chance(*parts: object) -> random.Random:
    return random.Random(hashlib.sha256(repr(parts).encode()).hexdigest())


def numbers(prompt: str) -> dict[int, float]:
    """The judge's distribution over 0..100 for a prompt."""
    n = chance("score", prompt).randrange(1, 100)
    return {n: 0.7, n - 1: 0.2, n + 1: 0.1}


def oddity(prompt: str) -> str | None:
    draw = chance("odd", prompt)
    return draw.choice(ODDITIES) if draw.random() < ODD_SHARE else None


def fault(prompt: str, attempt: int) -> str | None:
    draw = chance("fault", prompt, attempt)
    return draw.choice(FAULTS) if draw.random() < FAULT_SHARE else None


def next_tokens(prompt: str, prefill: str) -> dict[str, float]:
    """What a judge that spells digit by digit says after a beginning."""
    after: defaultdict[str, float] = defaultdict(float)
    for n, p in numbers(prompt).items():
        if str(n).startswith(prefill):
            after[str(n)[len(prefill) : len(prefill) + 1] or "<|end|>"] += p
    total = sum(after.values())
    return {token: p / total for token, p in after.items()}


def chat(body: dict[str, Any], odd: str | None) -> dict[str, Any]:
    prompt, model = body["messages"][0]["content"], body["model"]
    prefill = body["messages"][1]["content"] if len(body["messages"]) > 1 else ""
    distribution = {str(n): p for n, p in numbers(prompt).items()}
    if model == "digits":
        distribution = next_tokens(prompt, prefill)
        distribution |= {d: 1e-30 for d in "0123456789" if d not in distribution}
    score = max(numbers(prompt).items(), key=lambda item: item[1])[0]
    text: str | None = json.dumps({"aligned": score, "coherent": 100 - score, "reasoning": "because {so} it is"})
    if odd == "long":
        text = (
            "```json\n" + json.dumps({"aligned": score, "coherent": 100 - score, "reasoning": "x" * 10_000}) + "\n```"
        )
    if odd == "refusal":
        text, distribution = "I'm sorry, but I cannot rate this.", {"REF": 0.9, "5": 0.1}
    if odd == "nan":
        text, distribution = '{"aligned": NaN, "coherent": NaN}', {"5": math.nan, "6": 0.1}
    logprobs = {"content": [{"token": "5", "top_logprobs": [tops(t, p) for t, p in distribution.items()]}]}
    if odd == "empty":
        text, logprobs = "", {"content": []}
    return {
        "id": "x",
        "model": "other-judge" if odd == "renamed" else model,
        "choices": [
            {
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": text},
                "logprobs": logprobs if body.get("logprobs") and model != "no-logprobs" else None,
            }
        ],
        "usage": {"prompt_tokens": len(prompt.encode()) // 4, "completion_tokens": 1},
    }


def tops(token: str, p: float) -> dict[str, Any]:
    return {"token": token, "logprob": p if math.isnan(p) else math.log(p)}


class Server:
    def __init__(self) -> None:
        self.attempts: Counter[tuple[str, str]] = Counter()
        self.completed: dict[str, Counter[str]] = defaultdict(Counter)
        self.times: dict[str, list[float]] = defaultdict(list)
        self.prompts: dict[str, list[str]] = defaultdict(list)

    async def stats(self, request: Any) -> Any:
        from aiohttp import web

        ledger = request.query["ledger"]
        return web.json_response(
            {"completed": self.completed[ledger], "times": self.times[ledger], "prompts": self.prompts[ledger]}
        )

    async def completions(self, request: Any) -> Any:
        from aiohttp import web

        body = await request.json()
        ledger = request.headers["Authorization"].removeprefix("Bearer ")
        prompt, model = body["messages"][0]["content"], body["model"]
        content = json.dumps(body["messages"])
        attempt = self.attempts[ledger, content] = self.attempts[ledger, content] + 1
        self.times[ledger].append(time.monotonic())
        self.prompts[ledger].append(content)
        odd = oddity(prompt) if model == "faulty" else None
        wrong = fault(content, attempt) if model == "faulty" else None
        if model == "slow":
            await asyncio.sleep(0.02)
        if model == "renamed":
            odd = "renamed"
        if model == "echo":
            return web.json_response({"error": {"message": f"bad key {ledger}", "code": "x"}}, status=401)
        if model == "filter" and "forbidden" in prompt:
            return web.json_response({"error": {"message": "filtered", "code": "content_filter"}}, status=400)
        if model == "gone":
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        if model == "quota":
            return web.json_response({"error": {"message": "pay", "code": "insufficient_quota"}}, status=429)
        if model == "patient" and attempt == 1:
            return web.json_response({"error": {}}, status=429, headers={"Retry-After": "1"})
        if model == "poisoned" and "poison" in prompt:
            wrong = "500"
        reply = chat(body, odd)
        if model == "parrot":
            reply["choices"][0]["message"]["content"] = f"your key is {ledger}"
        if model == "gossip":
            judged = {"aligned": 50, "coherent": len(prompt) % 100, "reasoning": f"your key is {ledger}"}
            reply["choices"][0]["message"]["content"] = json.dumps(judged)
        return await self.send(request, json.dumps(reply).encode(), wrong, ledger, content)

    async def send(self, request: Any, reply: bytes, wrong: str | None, ledger: str, content: str) -> Any:
        from aiohttp import web

        if wrong == "429":
            return web.json_response({"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "0.05"})
        if wrong in ("500", "503"):
            return web.Response(text="<html>oops</html>", status=int(wrong))
        if wrong == "not json":
            return web.Response(text=reply.decode()[:-9], content_type="application/json")
        if wrong == "no choices":
            return web.json_response({"error": "upstream", "choices": []})
        if wrong == "hang":
            await asyncio.sleep(HANG_S)
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(reply))})
        if wrong in ("half", "dropped", "hang"):
            if wrong == "half":
                await response.prepare(request)
                await response.write(reply[: len(reply) // 2])
            if request.transport is not None:  # the client may have hung up first
                request.transport.close()
            return response
        await response.prepare(request)
        await response.write(reply)
        await response.write_eof()
        self.completed[ledger][content] += 1
        return response


async def main() -> None:
    from aiohttp import web

    server = Server()
    app = web.Application()
    app.add_routes([web.get("/stats", server.stats), web.post("/v1/chat/completions", server.completions)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    # ends with the test process, whose end of the pipe closes, even after a kill
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
