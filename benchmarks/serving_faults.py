"""A server under load and faults: clients that leave, read slowly, or send what is not a request.

    glmtune serve RUN --port 8000 &
    python benchmarks/serving_faults.py http://127.0.0.1:8000 --pid $! --clients 64 --seconds 600 --terminate

Every client repeats one of: a greedy reply, a greedy stream, a stream that it leaves, a stream that it reads slowly, a
malformed body, an oversized one, a conversation that is too long. Greedy replies must equal those to the same
prompts asked alone. With `--terminate` the server gets SIGTERM under load: what it accepted must be answered, and it
must end. Prints one JSON object: counts of what happened, and the resident memory of the server in MiB over time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from typing import Any

import httpx
import psutil

PROMPTS = [f"写一段关于第{number}件衣服的广告" for number in range(24)]
_SLOW_S = 0.05
_SAMPLE_INTERVAL_S = 5.0


class FaultRun:
    """Clients of a server, and what happened.

    Args:
        url: of the server.
        model: its name.
        max_tokens: of a reply.
    """

    def __init__(self, url: str, model: str, max_tokens: int):
        self.url, self.model, self.max_tokens = url, model, max_tokens
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.expected: dict[str, str] = {}
        self.is_ending = False

    def make_body(self, prompt: str, **fields: Any) -> dict[str, Any]:
        message = {"role": "user", "content": prompt}
        body = {"model": self.model, "messages": [message], "temperature": 0, "max_tokens": self.max_tokens}
        return {**body, "ignore_eos": True, **fields}

    async def prepare(self) -> None:
        """Ask every prompt alone."""
        async with httpx.AsyncClient(base_url=self.url, timeout=600) as client:
            for prompt in PROMPTS:
                answer = (await client.post("/v1/chat/completions", json=self.make_body(prompt))).json()
                self.expected[prompt] = answer["choices"][0]["message"]["content"]

    async def run_client(self, seed: int, end: float) -> None:
        """Act until the time is over, or the server ends."""
        draw = random.Random(seed)
        actions = [self.ask, self.ask, self.stream, self.stream, self.leave, self.read_slowly, self.send_garbage]
        async with httpx.AsyncClient(base_url=self.url, timeout=600) as client:
            while time.monotonic() < end:
                action = draw.choice(actions)
                try:
                    await action(client, draw)
                    self.counts[action.__name__] += 1
                except httpx.ConnectError:
                    if self.is_ending:
                        self.counts["refused at the end"] += 1
                        return
                    self.wrong.append(f"{action.__name__}: cannot connect")
                except httpx.HTTPError as error:
                    # An idle connection may be closed while the next request is on its way.
                    kind = "closed at the end" if self.is_ending else "lost"
                    self.counts[kind] += 1
                    if not self.is_ending:
                        self.wrong.append(f"{action.__name__}: {type(error).__name__} {error}")
                    else:
                        return

    async def ask(self, client: httpx.AsyncClient, draw: random.Random) -> None:
        prompt = draw.choice(PROMPTS)
        answer = await client.post("/v1/chat/completions", json=self.make_body(prompt))
        if answer.status_code == 200:
            self.compare(prompt, answer.json()["choices"][0]["message"]["content"])
        else:
            await self.require_busy(answer)

    async def stream(self, client: httpx.AsyncClient, draw: random.Random, slow_s: float = 0, pieces: int = -1) -> None:
        prompt, text, count = draw.choice(PROMPTS), "", 0
        body = self.make_body(prompt, stream=True)
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                await self.require_busy(answer)
                return
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    self.compare(prompt, text)
                elif line.startswith("data: "):
                    value = json.loads(line[6:])
                    if "error" in value:
                        self.wrong.append(f"stream: {value['error']['message']}")
                        return
                    text += value["choices"][0]["delta"].get("content", "")
                    await asyncio.sleep(slow_s)
                    count += 1
                    if count == pieces:
                        return

    async def leave(self, client: httpx.AsyncClient, draw: random.Random) -> None:
        await self.stream(client, draw, pieces=draw.randint(1, max(2, self.max_tokens // 2)))

    async def read_slowly(self, client: httpx.AsyncClient, draw: random.Random) -> None:
        await self.stream(client, draw, slow_s=_SLOW_S)

    async def send_garbage(self, client: httpx.AsyncClient, draw: random.Random) -> None:
        bodies = [
            (b"{", 400),
            (b"\xff" * 100, 400),
            (b"[" * 50_000, 400),
            (json.dumps({"model": self.model}).encode(), 400),
            (json.dumps(self.make_body("x", temperature="hot")).encode(), 400),
            (json.dumps(self.make_body("x", logit_bias={"9" * 30: 1})).encode(), 400),
            (json.dumps(self.make_body("长" * 500_000)).encode(), 400),
            (b" " * (5 * 2**20), 413),
        ]
        body, expected = draw.choice(bodies)
        answer = await client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        if answer.status_code not in (expected, 503):
            self.wrong.append(f"status {answer.status_code} for {body[:40]!r}, not {expected}")

    def compare(self, prompt: str, text: str) -> None:
        self.counts["compared replies"] += 1
        if text != self.expected[prompt]:
            self.wrong.append(f"{prompt}: {text!r}, alone {self.expected[prompt]!r}")

    async def require_busy(self, answer: httpx.Response) -> None:
        """Accept only that the server is busy, or ends."""
        if answer.status_code == 429 or (answer.status_code == 503 and self.is_ending):
            self.counts[f"status {answer.status_code}"] += 1
            await asyncio.sleep(1)
        else:
            self.wrong.append(f"status {answer.status_code}: {answer.text[:200]}")


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the clients; returns what is printed."""
    model = httpx.get(f"{arguments.url}/v1/models").json()["data"][0]["id"]
    run = FaultRun(arguments.url, model, arguments.max_tokens)
    await run.prepare()
    memory: list[float] = []
    end = time.monotonic() + arguments.seconds

    async def watch_memory() -> None:
        while arguments.pid and psutil.pid_exists(arguments.pid):
            memory.append(round(psutil.Process(arguments.pid).memory_info().rss / 2**20))
            await asyncio.sleep(_SAMPLE_INTERVAL_S)

    watcher = asyncio.create_task(watch_memory())
    # With a signal at the end, clients are still asking when it comes.
    last = end + 3600 if arguments.terminate else end
    clients = [asyncio.create_task(run.run_client(seed, last)) for seed in range(arguments.clients)]
    if arguments.terminate:
        await asyncio.sleep(max(0.0, end - time.monotonic()))
        run.is_ending = True
        os.kill(arguments.pid, signal.SIGTERM)
    await asyncio.gather(*clients)
    watcher.cancel()
    return {"counts": dict(run.counts), "wrong": run.wrong, "memory_mib": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--pid", type=int, default=0, help="of the server, for its memory and --terminate")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--terminate", action="store_true")
    arguments = parser.parse_args()
    result = asyncio.run(measure(arguments))
    print(json.dumps(result, ensure_ascii=False, indent=1))
    raise SystemExit(1 if result["wrong"] else 0)


if __name__ == "__main__":
    main()
