"""Run vLLM's `LLM.generate` on prompts of ids; runs in vLLM's environment and prints a JSON object.

python run_vllm.py MODEL PROMPTS.json SEQUENCES NEW_TOKENS
"""

import json
import sys
import time

import psutil


def main() -> None:
    from vllm import LLM, SamplingParams

    model, path, sequences, new = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    with open(path, encoding="utf-8") as file:
        prompts = [{"prompt_token_ids": ids} for ids in json.load(file)]
    llm = LLM(
        model,
        dtype="float32",
        skip_tokenizer_init=True,
        max_num_seqs=sequences,
        max_model_len=1024,
        enable_prefix_caching=False,
    )
    params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
    llm.generate(prompts[:1], params, use_tqdm=False)
    start, cpu_start = time.perf_counter(), count_cpu_seconds()
    replies = llm.generate(prompts, params, use_tqdm=False)
    seconds, cpu_seconds = time.perf_counter() - start, count_cpu_seconds() - cpu_start
    tokens = sum(len(reply.outputs[0].token_ids) for reply in replies)
    print(json.dumps({"tokens_per_s": tokens / seconds, "cpu_ms_per_token": cpu_seconds * 1000 / tokens}))


def count_cpu_seconds() -> float:
    """CPU time of this process and those it started."""
    process = psutil.Process()
    times = [part.cpu_times() for part in (process, *process.children(recursive=True))]
    return sum(part.user + part.system for part in times)


if __name__ == "__main__":  # vLLM starts processes that import this file
    main()
