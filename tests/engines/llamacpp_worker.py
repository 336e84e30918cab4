"""Runs in the environment of llama.cpp: a job from standard input, its results to the file that the job names."""

from __future__ import annotations

import json
import sys
import urllib.request

import xllamacpp


def main() -> None:
    job = json.load(sys.stdin)
    server = xllamacpp.Server(make_params(job))
    ask = Client(server.listening_address)
    results: dict = {"replies": [], "prompts": [], "logprobs": []}
    for ids in job.get("prompts", []):
        request = {"prompt": ids, "n_predict": job["max_tokens"], "temperature": 0, "return_tokens": True}
        request |= {"cache_prompt": False, "n_probs": job.get("top", 0)}
        reply = ask("/completion", request)
        results["replies"].append(reply["tokens"])
        results["logprobs"].append([read_probabilities(token) for token in reply.get("completion_probabilities", [])])
    for messages in job.get("conversations", []):
        text = ask("/apply-template", {"messages": messages})["prompt"]
        tokens = ask("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
        results["prompts"].append(tokens)
    results["texts"] = [
        ask("/tokenize", {"content": text, "add_special": False, "parse_special": False})["tokens"]
        for text in job.get("texts", [])
    ]
    with open(job["out"], "w", encoding="utf-8") as stream:
        json.dump(results, stream)


def make_params(job: dict) -> xllamacpp.CommonParams:
    params = xllamacpp.CommonParams()
    params.model.path = job["model"]
    if job.get("lora"):
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(job["lora"], 1.0)]
    params.n_ctx, params.n_parallel, params.warmup, params.use_jinja = job.get("context", 2048), 1, False, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # 16 bits would round keys
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return params


def read_probabilities(token: dict) -> dict[str, float]:
    return {str(entry["id"]): entry["logprob"] for entry in token["top_logprobs"]}


class Client:
    """Asks the server over HTTP."""

    def __init__(self, address: str):
        self._address = address

    def __call__(self, path: str, body: dict) -> dict:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)


if __name__ == "__main__":
    main()
