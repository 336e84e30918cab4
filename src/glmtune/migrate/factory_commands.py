"""Commands of LLaMA-Factory that do not train: chat, webchat, webui, api, export, eval."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from glmtune.config_parsing import parse_number
from glmtune.errors import ConfigError
from glmtune.migrate.evaluation_lines import list_ignored, make_factory_target
from glmtune.migrate.other_scripts import LOCAL_NOTE
from glmtune.migrate.replacement import ReplacementCommand, make_options
from glmtune.utils.shell_words import join_commands, join_words

FACTORY_SCRIPTS = {
    "cli_demo.py": "chat",
    "infer.py": "chat",
    "web_demo.py": "webchat",
    "api_demo.py": "api",
    "api.py": "api",
    "export_model.py": "export",
    "evaluate.py": "eval",
    "webui.py": "webui",
    "train_web.py": "webui",
}
"""Scripts of its earlier versions, and the command of llamafactory-cli that replaced each."""

_FACTORY_COMMANDS_KEYS_NAMES = """
    export_dir export_size export_device export_quantization_bit export_quantization_dataset export_legacy_format
    export_quantization_nsamples export_quantization_maxlen export_hub_model_id infer_backend infer_dtype
    temperature top_p top_k num_beams max_length max_new_tokens repetition_penalty length_penalty do_sample
    skip_special_tokens task task_dir lang n_shot save_dir batch_size download_mode vllm_maxlen vllm_gpu_util
    vllm_enforce_eager vllm_max_lora_rank vllm_config use_cache use_kv_cache offload_folder
"""
FACTORY_COMMANDS_KEYS = frozenset(_FACTORY_COMMANDS_KEYS_NAMES.split())
"""Keys that only these commands have."""

_TARGET_KEYS = {"model_name_or_path", "adapter_name_or_path", "checkpoint_dir", "quantization_bit"}
_TASKS = {"ceval": "ceval-valid", "cmmlu": "cmmlu", "mmlu": "mmlu"}  # names of lm_eval


def make_factory_command(
    name: str, values: Mapping[str, Any], source: str, environment: Mapping[str, str]
) -> ReplacementCommand:
    """Return the command of glmtune for a command of llamafactory-cli.

    Args:
        name: chat, webchat, webui, api, export, eval, version, env or help.
        values: its keys, from a YAML file or from flags.
        source: for messages.
        environment: variables that are set before the command.

    Raises:
        ConfigError: an unknown command, one that glmtune has not, or values that are not supported.
    """
    if name not in _COMMANDS:
        known = ", ".join(["train", *_COMMANDS])
        raise ConfigError(f"{source}: llamafactory-cli has no command {name}.", f"Its commands: {known}.")
    command = _COMMANDS[name](values, source, dict(environment))
    command.script = f"llamafactory-cli {name}"
    return command


def _make_chat(values: Mapping[str, Any], source: str, environment: dict[str, str]) -> ReplacementCommand:
    options = {
        "--system": values.get("default_system"),
        "--max-new-tokens": values.get("max_new_tokens"),
        "--temperature": values.get("temperature", 0.95),
        "--top-p": values.get("top_p", 0.7),
    }
    words = ["chat", *make_factory_target(values, source), *make_options(options)]
    used = {*_TARGET_KEYS, "default_system", "max_new_tokens", "temperature", "top_p"}
    notes = ["Replies are sampled, as in LLaMA-Factory; without --temperature and --top-p: greedy."]
    return ReplacementCommand(source, "", words, [*notes, *list_ignored(values, used)], environment)


def _make_page(values: Mapping[str, Any], source: str, environment: dict[str, str]) -> ReplacementCommand:
    options = {
        "--port": environment.pop("GRADIO_SERVER_PORT", None),
        "--host": environment.pop("GRADIO_SERVER_NAME", None),
    }
    notes = []
    if environment.pop("USE_MODELSCOPE_HUB", "0") in ("1", "true", "True"):
        notes.append("USE_MODELSCOPE_HUB: choose ModelScope on the page, beside the model.")
    if values.keys() & _TARGET_KEYS:
        notes.append(f"The model is chosen on the page. In the terminal: {_make_chat(values, source, {}).text}")
    return ReplacementCommand(source, "", ["ui", *make_options(options)], notes, environment)


def _make_export(values: Mapping[str, Any], source: str, environment: dict[str, str]) -> ReplacementCommand:
    target, *base = make_factory_target({**values, "quantization_bit": None}, source)
    output = values.get("export_dir") or values.get("output_dir")
    if not output:
        raise ConfigError(f"{source}: no export_dir.", "Give the folder of the merged model.")
    notes = []
    bits = parse_number(values.get("export_quantization_bit"))
    if bits is not None:
        if bits not in (4, 8):
            raise ConfigError(f"{source}: export_quantization_bit {bits} is not supported.", "One of: 4, 8.")
        notes.append(f"export_quantization_bit {bits}: quantized by bitsandbytes, not by GPTQ; no rows are needed.")
    size, device = values.get("export_size"), values.get("export_device")
    options = {
        "--bits": bits,
        "--max-shard-size": f"{size}GB" if size else None,
        "--device": None if device == "auto" else device,
    }
    used = {*_TARGET_KEYS, "export_dir", "output_dir", "export_quantization_bit", "export_size", "export_device"}
    words = ["export", target, str(output), *base, *make_options(options)]
    return ReplacementCommand(source, "", words, [*notes, *list_ignored(values, used)], environment)


def _make_server(values: Mapping[str, Any], source: str, environment: dict[str, str]) -> ReplacementCommand:
    options = {
        "--host": environment.pop("API_HOST", None),
        "--port": environment.pop("API_PORT", None),
        "--name": environment.pop("API_MODEL_NAME", "gpt-3.5-turbo"),
        "--temperature": values.get("temperature", 0.95),
        "--top-p": values.get("top_p", 0.7),
    }
    notes = ["The model's name in requests is LLaMA-Factory's; another one: --name NAME"]
    if options["--host"] is None:
        notes.append(LOCAL_NOTE)
    if "API_KEY" in environment:
        environment["GLMTUNE_API_KEY"] = environment.pop("API_KEY")
    words = ["serve", *make_factory_target(values, source), *make_options(options)]
    used = {*_TARGET_KEYS, "temperature", "top_p"}
    return ReplacementCommand(source, "", words, [*notes, *list_ignored(values, used)], environment)


def _refuse_benchmark(values: Mapping[str, Any], source: str, environment: dict[str, str]) -> ReplacementCommand:
    target, *base = make_factory_target({**values, "quantization_bit": None}, source)
    task = str(values.get("task") or "ceval").split("_")[0]
    words = ["lm_eval", "--model", "hf", "--model_args", "pretrained=exported-model", "--tasks", _TASKS.get(task, task)]
    words += make_options({"--num_fewshot": values.get("n_shot", 5), "--batch_size": values.get("batch_size")})
    raise ConfigError(
        f"{source}: {task} is a benchmark that glmtune does not have.",
        "Export the model and measure it with lm_eval (not ChatGLM-6B): "
        + join_commands([join_words(["glmtune", "export", target, "exported-model", *base]), join_words(words)]),
    )


def _make_version(values: Mapping[str, Any], source: str, environment: dict[str, str]) -> ReplacementCommand:
    return ReplacementCommand(source, "", ["version"], [], environment)


_COMMANDS: dict[str, Callable[[Mapping[str, Any], str, dict[str, str]], ReplacementCommand]] = {
    "chat": _make_chat,
    "webchat": _make_page,
    "webui": _make_page,
    "api": _make_server,
    "export": _make_export,
    "eval": _refuse_benchmark,
    "version": _make_version,
    "env": _make_version,
}
