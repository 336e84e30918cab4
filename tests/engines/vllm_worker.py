"""Runs in the environment of vLLM: a job from standard input, its results to the file that the job names."""

from __future__ import annotations

import json
import os
import sys

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


def main() -> None:
    job = json.load(sys.stdin)
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    options = {"tokenizer": job["tokenizer"]} if job.get("tokenizer") else {}
    if job.get("adapters"):
        options |= {"enable_lora": True, "max_lora_rank": 64}
    model = LLM(
        job["model"], dtype=job.get("dtype", "float32"), enforce_eager=True, max_model_len=512, seed=0, **options
    )
    sampling = SamplingParams(temperature=0, max_tokens=job["max_tokens"])
    results: dict = {"replies": {}}
    tokens = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    for name, path in {"": None, **job.get("adapters", {})}.items():
        request = LoRARequest(name, 1, path) if path else None
        replies = model.generate(tokens, sampling, lora_request=request, use_tqdm=False)
        results["replies"][name] = [list(reply.outputs[0].token_ids) for reply in replies]
    if job.get("conversations"):
        replies = model.chat(job["conversations"], sampling, use_tqdm=False)
        results["prompts"] = [list(reply.prompt_token_ids) for reply in replies]
    with open(job["out"], "w", encoding="utf-8") as stream:
        json.dump(results, stream)
    sys.stdout.flush()
    os._exit(0)  # its threads need not be waited for


if __name__ == "__main__":
    main()
