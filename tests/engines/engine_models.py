"""Models, adapters, prompts and our own replies that the other engines are compared with."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

import glmtune
from demo_corpus.corpus import make_adgen_rows
from glmtune.export.export_request import ExportRequest
from glmtune.export.exporter import export_model
from glmtune.families import Family
from glmtune.generation.batched import generate_batched
from glmtune.generation.sampling import Sampling
from glmtune.methods.base_info import BaseInfo, write_base_info
from glmtune.methods.lora import load_adapter
from glmtune.models.checkpoints import inspect_checkpoint
from glmtune.models.loading import load_base
from tiny import make_tiny

DEMO = "demo"
MODELS = (DEMO, "chatglm2", "chatglm3", "glm4")
"""The trained base of the demo (ChatGLM3), and random ones of each generation that other engines have."""
COUNT, LENGTH = 50, 24
"""Prompts, and the longest reply in tokens."""
_ENGINES = Path(os.environ.get("GLMTUNE_ENGINES", ".engines"))
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class EngineCase:
    """A model with its prompts."""

    folder: Path
    family: Family
    tokenizer: Any
    conversations: list[list[dict[str, str]]]
    prompts: list[list[int]]


def make_case(name: str, folder: Path) -> EngineCase:
    """The model `name` of `MODELS`; random ones are written to `folder`."""
    if name == DEMO:
        folder = Path(glmtune.__file__).parent / "demo" / "base"
    else:
        make_tiny(name, folder, hidden=128)  # heads of 32, the smallest that engines have kernels for
        config = json.loads((folder / "config.json").read_text("utf-8"))
        # As in published files; vLLM reads all three.
        config |= {"architectures": ["ChatGLMModel"], "original_rope": True, "tie_word_embeddings": False}
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
    family, tokenizer = inspect_checkpoint(folder).family, glmtune.load_tokenizer(folder)
    conversations = make_conversations()
    return EngineCase(
        folder, family, tokenizer, conversations, [family.encode_prompt(talk, tokenizer) for talk in conversations]
    )


def make_conversations() -> list[list[dict[str, str]]]:
    """Questions of the demo; some after earlier turns, with a system message, and with what tokenizers stumble on."""
    rows = make_adgen_rows(COUNT, seed=11)
    talks = [[{"role": "user", "content": row["content"]}] for row in rows]
    for i in range(0, COUNT, 5):
        answer = {"role": "assistant", "content": rows[i]["summary"]}
        talks[i] = [*talks[i], answer, {"role": "user", "content": rows[i - 1]["content"]}]
    for i in range(1, COUNT, 10):
        talks[i] = [{"role": "system", "content": "你是导购。"}, *talks[i]]
    odd = [
        "What do people think of a sophisticated shop?",
        "第一行\n\n  第二行\t😀",
        " a  b ",
        "1+1=2, it's DON'T 3.14",
    ]
    for i, text in enumerate(odd):
        talks[2 + 5 * i] = [{"role": "user", "content": text}]
    return talks


def make_adapter(case: EngineCase, folder: Path) -> Path:
    """A LoRA adapter with random B, which changes the replies."""
    base = inspect_checkpoint(case.folder)
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj"])
    model = get_peft_model(load_base(base, device=torch.device("cpu"), dtype="fp32"), config)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    write_base_info(folder, BaseInfo(str(case.folder), base.fingerprint, case.family.name))
    return folder


def load_ours(case: EngineCase, adapter: Path | None = None) -> Any:
    """The model in fp32, with an adapter on it."""
    model = load_base(inspect_checkpoint(case.folder), device=torch.device("cpu"), dtype="fp32")
    return load_adapter(model, adapter).eval() if adapter else model.eval()


def answer_greedily(model: Any, case: EngineCase) -> list[list[int]]:
    """Our greedy replies, without stop ids."""
    sampling = Sampling(max_new_tokens=LENGTH)
    return [reply.ids for reply in generate_batched(model, case.tokenizer, case.family, case.prompts, sampling)]


def begin_replies(case: EngineCase, replies: list[list[int]]) -> list[list[int]]:
    """Prompts with the beginning of a reply: its first tokens, a line break, are the same in all."""
    return [ids + reply[: 3 + i % 8] for i, (ids, reply) in enumerate(zip(case.prompts, replies, strict=True))]


def compute_next_logprobs(model: Any, prompts: list[list[int]]) -> torch.Tensor:
    """Log-probabilities (N, V) of the next token."""
    rows = []
    with torch.no_grad():
        for ids in prompts:
            rows.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].float().log_softmax(-1))
    return torch.stack(rows)


def drop_stop_ids(replies: list[list[int]], case: EngineCase) -> list[list[int]]:
    """Replies up to the first stop id, as engines differ in whether they return it."""
    stops = set(case.family.get_stop_ids(case.tokenizer))
    cut = []
    for reply in replies:
        end = next((i for i, token in enumerate(reply) if token in stops), len(reply))
        cut.append(reply[:end])
    return cut


def find_python(environment: str) -> Path:
    """The interpreter of an engine's environment."""
    python = _ENGINES.absolute() / environment / "bin" / "python"
    assert python.is_file(), f"{python} is missing; `make engines` builds it"
    return python


def make_environment() -> dict[str, str]:
    """Variables for an engine's process: nothing of ours is imported there, nothing is downloaded."""
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return variables | {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}


def run_in(environment: str, script: str, job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Run a script of this folder in an engine's environment.

    Args:
        environment: its name in the folder of `make engines`.
        script: gets `job` on its standard input.
        job: without `out`, which is added.
        out: the file that the script writes.
    """
    done = subprocess.run(
        [find_python(environment), _HERE / script],
        input=json.dumps(job | {"out": str(out)}),
        capture_output=True,
        text=True,
        env=make_environment(),
        cwd=out.parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text("utf-8"))


def export(target: Path, out: Path, **request: Any) -> None:
    """Export as `glmtune export` does; the fields of the request are its options."""
    export_model(str(target), out, ExportRequest(device="cpu", **request))
