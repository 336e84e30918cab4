"""The closing messages of an export: what was written, and how to use it."""

from __future__ import annotations

from pathlib import Path

from transformers import GlmConfig

from glmtune.export.export_request import ExportRequest
from glmtune.export.exporter import ExportResult
from glmtune.methods.lora_files import read_config
from glmtune.utils.shell_words import join_words, quote_word

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank takes."""


def format_result(result: ExportResult, request: ExportRequest) -> list[str]:
    """Sentences: the folder, its size, how to serve it and how to talk to it."""
    if result.source.is_reward_model:
        size = _measure_folder(result.folder)
        load = f"AutoModelForSequenceClassification.from_pretrained({str(result.folder)!r})"
        return [f"Done: {result.folder} (a reward model for transformers, {size}).", f"Load it: {load}"]
    if request.layout == "gguf":
        return _describe_gguf(result, request)
    form = "adapter" if request.adapter_only else f"{request.bits} bits"
    lines = [f"Done: {result.folder} ({request.layout} layout, {form}, {_measure_folder(result.folder)})."]
    if request.adapter_only:
        return [*lines, *_describe_adapter(result, request), _describe_chat(result.folder)]
    lines += _describe_official(result, request) if request.layout == "official" else _describe_hf(result, request)
    if result.source.is_prefix:
        return lines  # printed already
    return [*lines, _describe_chat(result.folder)]


def _describe_hf(result: ExportResult, request: ExportRequest) -> list[str]:
    if not isinstance(result.source.base.config, GlmConfig):
        return ["transformers has no such class: `import glmtune` first, then its Auto classes load the folder."]
    if request.bits < 16:
        return ["Load it: AutoModelForCausalLM.from_pretrained, with bitsandbytes installed; glmtune is not needed."]
    if result.source.is_prefix:
        return []
    return [f"Serve it: vllm serve {_quote_path(result.folder)}"]


def _describe_adapter(result: ExportResult, request: ExportRequest) -> list[str]:
    """How vLLM serves a LoRA adapter beside its base."""
    source = result.source
    if source.is_prefix or request.layout != "hf" or not isinstance(source.base.config, GlmConfig):
        return []
    base, lines = source.base.folder, []
    if not (base / "tokenizer.json").is_file():  # a published folder, whose tokenizer is Python code
        base = result.folder.with_name(f"{result.folder.name}-base")
        lines.append(f"Its base for vLLM: {join_words(['glmtune', 'export', str(source.base.folder), str(base)])}")
    config = read_config(result.folder)
    rank = max(config["r"], *(config.get("rank_pattern") or {"": 0}).values())
    options = ["--enable-lora", "--max-lora-rank", str(next((each for each in _VLLM_RANKS if each >= rank), rank))]
    command = join_words(["vllm", "serve", str(base), *options, "--lora-modules", f"tuned={result.folder}"])
    return [*lines, f"Serve both: {command}"]


def _describe_gguf(result: ExportResult, request: ExportRequest) -> list[str]:
    path = next(result.folder.glob("*.gguf"))
    done = f"Done: {path} ({_measure_folder(result.folder)})."
    if request.adapter_only:
        base = result.folder.with_name(f"{result.folder.name}-base")
        command = join_words(["glmtune", "export", str(result.source.base.folder), str(base), "--format", "gguf"])
        model = _quote_path(base / "model-f16.gguf")
        return [
            done,
            f"Its base as a GGUF file: {command}",
            f"Serve both: llama-server --jinja -m {model} --lora {_quote_path(path)}",
        ]
    modelfile = _quote_path(result.folder / "Modelfile")
    return [
        done,
        f"Serve it: llama-server --jinja -m {_quote_path(path)}",
        f"With Ollama: ollama create {quote_word(result.folder.name.lower())} -f {modelfile}",
    ]


def _describe_official(result: ExportResult, request: ExportRequest) -> list[str]:
    lines = []
    if not any(result.folder.glob("modeling*.py")):
        lines.append(
            "The base folder has no code of the repository; the published code and chatglm.cpp need its *.py here."
        )
    if request.bits == 16 and not result.source.is_prefix:
        model = _quote_path(result.folder)
        lines.append(f"For chatglm.cpp: python3 chatglm_cpp/convert.py -i {model} -t q4_0 -o chatglm-q4_0.bin")
    return lines


def _describe_chat(folder: Path) -> str:
    return f"Talk to it: glmtune chat {_quote_path(folder)}"


def _measure_folder(folder: Path) -> str:
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{total / 1e9:.2f} GB" if total >= 1e9 else f"{total / 1e6:.1f} MB"


def _quote_path(path: Path) -> str:
    return quote_word(str(path))
