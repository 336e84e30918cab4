"""Throughput and latency of serving by number of clients: the batching engine, one request at a time, and others.

    PYTHONPATH=src python benchmarks/serving.py [--clients 1 4 16 64] [--candidates batch serve vllm] [--vllm ENV]

Every client sends its next request when its reply has ended. Prompts are questions of the demo's kind, greedy, and no
reply stops early. All candidates have the same prompts, precision (fp32) and number of threads (OMP_NUM_THREADS). Where
other work shares the machine, the CPU time of a token says more than the clock.

- **one by one** is the loop that `glmtune chat` and evaluation run, on one request at a time in order of arrival.
- **batch** is the engine of `glmtune serve`, called in its own process.
- **serve** is `glmtune serve` over HTTP; the clients share the machine with it.
- **transformers serve** is transformers' own server over HTTP, with and without `--continuous-batching`, on the same
  weights in its own format and the same prompts as text.
- **vllm** is vLLM's `LLM.generate` in an environment of its own (`--vllm ENV`: a folder with `bin/python`), as many
  sequences at a time as clients; its latencies are not measured.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import queue
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil
from harness import (
    REPOSITORY,
    BenchmarkError,
    describe_environment,
    format_footer,
    format_table,
    make_parser,
    make_pythonpath,
    median,
    report_result,
    run_interleaved,
    run_json,
    run_timed,
)

DEMO = REPOSITORY / "src" / "glmtune" / "demo" / "base"
TRAITS = ("材质#牛仔布", "颜色#白色", "风格#简约", "图案#刺绣", "版型#宽松", "裙型#A字", "衣长#短款", "袖长#长袖")
Ask = Callable[[list[int], Callable[[int], None]], None]
"""(prompt ids, function to call with the number of new tokens as they come); returns at the end of the reply."""


# --- one candidate, in a process of its own ---


def make_prompts(folder: Path, count: int) -> list[list[int]]:
    """Questions of different lengths, the same in every process."""
    import glmtune

    tokenizer, family = glmtune.load_tokenizer(folder), glmtune.detect_family(folder)
    rng = random.Random(0)
    texts = ["*".join(["类型#上衣", *rng.sample(TRAITS, rng.randint(1, 6))]) for _ in range(count)]
    return [family.encode_prompt([{"role": "user", "content": text}], tokenizer) for text in texts]


def measure_clients(ask: Ask, clients: int, prompts: Sequence[list[int]], new: int) -> dict[str, float]:
    """Let `clients` threads ask until all prompts are answered.

    Returns:
        `tokens_per_s` of all; in seconds, medians and 95th percentiles of the first token (`first_p50`, `first_p95`)
        and of the times between tokens (`between_p50`, `between_p95`).
    """
    todo: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for prompt in prompts:
        todo.put(prompt)
    firsts: list[float] = []
    gaps: list[float] = []
    errors: list[BaseException] = []

    def run_client() -> None:
        try:
            while True:
                prompt = todo.get_nowait()
                times = [time.perf_counter()]
                tokens = 0

                def note(count: int, times: list[float] = times) -> None:
                    nonlocal tokens
                    tokens += count
                    times.append(time.perf_counter())

                ask(prompt, note)
                if tokens != new:
                    raise BenchmarkError(f"a reply has {tokens} tokens instead of {new}")
                firsts.append(times[1] - times[0])
                gaps.extend(b - a for a, b in itertools.pairwise(times[1:]))
        except queue.Empty:
            pass
        except BaseException as error:  # read by the main thread
            errors.append(error)

    threads = [threading.Thread(target=run_client) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = time.perf_counter() - start
    if errors:
        raise errors[0]
    result = {"tokens_per_s": len(prompts) * new / total}
    for name, values in (("first", firsts), ("between", gaps)):
        result |= {f"{name}_p50": _quantile(values, 0.5), f"{name}_p95": _quantile(values, 0.95)}
    return result


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else 0.0


@contextmanager
def use_one_by_one(folder: Path, clients: int, new: int) -> Iterator[Ask]:
    """The loop of chat and evaluation, a request at a time."""
    import glmtune
    from glmtune.generation.cpu_prepack import prepacked
    from glmtune.generation.engine import decode_tokens, pick_greedy

    model = glmtune.load_model(folder, dtype="fp32", device="cpu")
    turn = threading.Lock()

    def ask(prompt: list[int], note: Callable[[int], None]) -> None:
        with turn:
            decode_tokens(
                model,
                [prompt],
                pick_greedy,
                max_new_tokens=new,
                stops=(),
                padding=0,
                on_step=lambda tokens: note(len(tokens)),
            )

    with prepacked(model):
        yield ask


@contextmanager
def use_batch(folder: Path, clients: int, new: int) -> Iterator[Ask]:
    """The batching engine in this process."""
    import glmtune
    from glmtune.generation.batch_requests import BatchRequest, FinishEvent
    from glmtune.generation.continuous import BatchEngine

    model = glmtune.load_model(folder, dtype="fp32", device="cpu")
    engine = BatchEngine(
        model, glmtune.load_tokenizer(folder), glmtune.detect_family(folder), max_batch=clients, prefix_cache_bytes=0
    )
    engine.start()

    def ask(prompt: list[int], note: Callable[[int], None]) -> None:
        done = threading.Event()

        def on_event(event: Any) -> None:
            if isinstance(event, FinishEvent):
                done.set()
            else:
                note(len(event.token_ids))

        engine.submit(BatchRequest(prompt, new, ignore_eos=True), on_event)
        done.wait()

    try:
        yield ask
    finally:
        engine.close()


@contextmanager
def use_http(folder: Path, clients: int, new: int) -> Iterator[Ask]:
    """`glmtune serve` in another process, asked over HTTP with streams."""
    command = [sys.executable, "-m", "glmtune", "serve", str(folder), "--port", "0", "--dtype", "fp32"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [*command, "--max-batch", str(clients), "--name", "model"], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            port = _wait_for_port(server, log)

            def ask(prompt: list[int], note: Callable[[int], None]) -> None:
                body = {"model": "model", "prompt": prompt, "max_tokens": new, "temperature": 0, "stream": True}
                body |= {"ignore_eos": True, "stream_options": {"include_usage": True}}
                stream_completion(port, body, note)

            yield ask
        finally:
            server.terminate()
            server.wait()


def use_transformers(*options: str) -> Callable[[Path, int, int], AbstractContextManager[Ask]]:
    """`transformers serve` in another process, with these options, asked over HTTP with streams."""

    @contextmanager
    def use(folder: Path, clients: int, new: int) -> Iterator[Ask]:
        import glmtune

        tokenizer = glmtune.load_tokenizer(folder)
        # No stop id ends a reply: the server takes them from this, and one alone is asked for a least length too.
        config = {"pad_token_id": 0, "max_new_tokens": new, **({} if options else {"min_new_tokens": new})}
        with tempfile.TemporaryDirectory() as hf, socket.socket() as free, tempfile.TemporaryFile("w+") as log:
            write_hf_folder(folder, Path(hf))
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            command = [str(Path(sys.executable).with_name("transformers")), "serve", hf, "--port", str(port)]
            server = subprocess.Popen(
                [*command, "--device", "cpu", "--dtype", "float32", *options], stdout=log, stderr=subprocess.STDOUT
            )
            try:
                _wait_until_open(server, port)

                def ask(prompt: list[int], note: Callable[[int], None]) -> None:
                    text = tokenizer.decode(prompt, skip_special_tokens=True)
                    body = {"model": hf, "prompt": text, "max_tokens": new, "temperature": 0, "stream": True}
                    stream_completion(port, body | {"generation_config": json.dumps(config)}, note)

                yield ask
            finally:
                server.terminate()
                server.wait()

    return use


def stream_completion(port: int, body: dict[str, Any], note: Callable[[int], None]) -> None:
    """Ask a server on this machine for a completion and note its tokens as they come.

    Raises:
        BenchmarkError: it does not answer with a stream.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise BenchmarkError(f"status {answer.status}: {answer.read()[:200].decode(errors='replace')}")
    noted = 0
    for line in answer:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if event.get("choices") and not event.get("usage"):
                noted += 1
                note(1)
            if event.get("usage"):  # pieces of text are not always one token
                note(event["usage"]["completion_tokens"] - noted)
    connection.close()


def _wait_until_open(server: subprocess.Popen, port: int) -> None:
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if server.poll() is not None:
            raise BenchmarkError("the server ended")
        time.sleep(0.2)


def _wait_for_port(server: subprocess.Popen, log: Any) -> int:
    """The port that the server says it listens on."""
    import re

    while True:
        log.seek(0)
        text = log.read()
        if found := re.search(r"127\.0\.0\.1:(\d+)", text):
            return int(found[1])
        if server.poll() is not None:
            raise BenchmarkError(text.strip().splitlines()[-1] if text.strip() else "the server ended")
        time.sleep(0.1)


CANDIDATES = {
    "one by one": use_one_by_one,
    "batch": use_batch,
    "serve": use_http,
    "transformers serve": use_transformers(),
    "transformers serve --continuous-batching": use_transformers("--continuous-batching"),
}


def measure_candidate(name: str, folder: Path, clients: int, requests: int, new: int) -> dict[str, float]:
    """Measure a candidate after a first reply, in this process."""
    prompts = make_prompts(folder, requests)
    with CANDIDATES[name](folder, clients, new) as ask:
        ask(prompts[0], lambda count: None)
        start = count_cpu_seconds()
        result = measure_clients(ask, clients, prompts, new)
        seconds = count_cpu_seconds() - start
    return {**result, "cpu_ms_per_token": seconds * 1000 / (len(prompts) * new)}


def count_cpu_seconds() -> float:
    """CPU time of this process and those it started: servers, and the clients, which take a little of it."""
    process = psutil.Process()
    times = [part.cpu_times() for part in (process, *process.children(recursive=True))]
    return sum(part.user + part.system for part in times)


# --- all candidates ---


def write_hf_folder(folder: Path, output: Path) -> None:
    """The model as transformers writes it, for other engines."""
    import glmtune

    glmtune.load_model(folder, dtype="fp32", device="cpu").save_pretrained(output)
    glmtune.load_tokenizer(folder).save_pretrained(output)


def measure_vllm(python: Path, folder: Path, prompts: Path, clients: int, new: int) -> dict[str, float]:
    """Measure `LLM.generate` in its own environment."""
    script = REPOSITORY / "benchmarks" / "peers" / "run_vllm.py"
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": ""}
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads:  # vLLM takes the cores' numbers
        env["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{int(threads) - 1}"
    _, output = run_timed([python, script, folder, prompts, str(clients), str(new)], env=env)
    return json.loads(next(line for line in reversed(output.splitlines()) if line.startswith("{")))


def format_results(result: dict[str, Any]) -> str:
    """A markdown table: a row per candidate and number of clients."""
    rows = []
    alone = {cell["clients"]: cell for cell in result["cells"] if cell["name"] == "one by one"}
    for cell in result["cells"]:
        if "failed" in cell:
            rows.append([cell["name"], str(cell["clients"]), cell["failed"], *[""] * 6])
            continue
        runs = cell["runs"]
        rate = median(run["tokens_per_s"] for run in runs)
        base = alone.get(cell["clients"], {}).get("runs")
        ratio = f"{rate / median(run['tokens_per_s'] for run in base):.1f}" if base else ""
        times = [
            f"{median(run[key] for run in runs) * 1000:,.1f}" if key in runs[0] else ""
            for key in ("first_p50", "first_p95", "between_p50", "between_p95")
        ]
        cpu = f"{median(run['cpu_ms_per_token'] for run in runs):.2f}"
        rows.append([cell["name"], str(cell["clients"]), f"{rate:,.0f}", ratio, cpu, *times])
    head = ["candidate", "clients", "tokens/s", "times one by one", "CPU time of a token, ms"]
    head += ["first token p50, ms", "p95", "between tokens p50, ms", "p95"]
    return "\n".join([*format_table(head, rows), "", *format_footer(result)])


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", type=Path, default=DEMO, help="a published folder (default: the demo's base)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--requests", type=int, default=2, help="of each client (default 2)")
    parser.add_argument("--new", type=int, default=64, help="tokens of a reply (default 64)")
    parser.add_argument("--candidates", nargs="+", default=["one by one", "batch"], choices=[*CANDIDATES, "vllm"])
    parser.add_argument("--vllm", type=Path, help="environment of vLLM")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        name, clients = options.cell[0], int(options.cell[1])
        requests = max(8, clients * options.requests)
        print(json.dumps(measure_candidate(name, options.model, clients, requests, options.new)))
        return
    if "vllm" in options.candidates and not options.vllm:
        parser.error("vllm: name its environment with --vllm")
    cells = [(name, clients) for clients in options.clients for name in options.candidates]
    with tempfile.TemporaryDirectory() as scratch:
        if options.vllm:
            write_hf_folder(options.model, Path(scratch) / "hf")

        def run(key: str) -> dict[str, Any]:
            name, clients = key.split("|")[0], int(key.split("|")[1])
            if name == "vllm":
                prompts = Path(scratch) / f"prompts-{clients}.json"
                prompts.write_text(json.dumps(make_prompts(options.model, max(8, clients * options.requests))))
                hf = Path(scratch) / "hf"
                return measure_vllm(options.vllm / "bin" / "python", hf, prompts, clients, options.new)
            arguments = ["--model", options.model, "--requests", options.requests, "--new", options.new]
            return run_json(
                "serving.py",
                "--cell",
                name,
                clients,
                *arguments,
                prefix=options.prefix,
                env={"PYTHONPATH": make_pythonpath(), **_list_thread_settings()},
            )

        results = run_interleaved([f"{name}|{clients}" for name, clients in cells], options.repeats, run)
    result = describe_environment("serving.py")
    result["cells"] = [
        {"name": key.split("|")[0], "clients": int(key.split("|")[1]), **value} for key, value in results.items()
    ]
    report_result(result, options.json, format_results)


def _list_thread_settings() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key == "OMP_NUM_THREADS"}


if __name__ == "__main__":
    main()
