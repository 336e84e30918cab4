"""Lines of training scripts that evaluate, as commands of `glmtune eval`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from glmtune.config_parsing import parse_number
from glmtune.errors import ConfigError
from glmtune.migrate.argument_names import parse_bool
from glmtune.migrate.replacement import ReplacementCommand, make_options, make_overrides

PTUNING_LENGTHS = {"data.max_source_length": 1024, "data.max_target_length": 128}
"""Limits of main.py, if they are not given."""
_PACKED = {4: "packed4", 8: "packed8"}
_BITSANDBYTES = {4: "nf4", 8: "int8"}
_PTUNING_SAMPLING = {"--temperature": 0.95, "--top-p": 0.7}  # written in main.py
_FACTORY_SAMPLING = {"temperature": 0.95, "top_p": 0.7, "max_new_tokens": 1024}  # of GeneratingArguments


def make_ptuning_evaluations(values: Mapping[str, Any], source: str) -> list[ReplacementCommand]:
    """Return the commands for `main.py --do_predict` and `--do_eval`.

    Raises:
        ConfigError: no model, no data, or bits that are not supported.
    """
    model, checkpoint = values.get("model_name_or_path"), values.get("ptuning_checkpoint")
    if not model:
        raise ConfigError(f"{source}: no --model_name_or_path.", "Give the folder or hub id of the model.")
    bits = parse_number(values.get("quantization_bit"))
    if bits not in (None, 0, *_PACKED):
        raise ConfigError(f"{source}: --quantization_bit {bits} is not supported.", "One of: 4, 8.")

    predicts = parse_bool(values.get("do_predict"), "--do_predict", source)
    names = [*(["test_file"] if predicts else [])]
    if parse_bool(values.get("do_eval"), "--do_eval", source):
        names.append("validation_file")
    files = list(dict.fromkeys(str(values[name]) for name in names if values.get(name)))
    if not files:
        raise ConfigError(f"{source}: no rows to evaluate on.", f"Give --{names[0]} FILE.")
    output = values.get("output_dir")
    commands = []
    for number, file in enumerate(files):
        folder = find_evaluation_folder(str(output), number) if output else None
        words = ["eval", *([str(checkpoint), "--base", str(model)] if checkpoint else [str(model)]), "--data", file]
        words += make_options({"--output": folder})
        words += make_options({"--quantization": _PACKED.get(bits)})
        words += make_ptuning_options(values)
        words += make_overrides(
            {
                **{
                    key: parse_number(values.get(key.removeprefix("data."), default))
                    for key, default in PTUNING_LENGTHS.items()
                },
                "data.columns.prompt": values.get("prompt_column"),
                "data.columns.response": values.get("response_column"),
                "data.columns.history": values.get("history_column"),
                "data.prefix": values.get("source_prefix"),
            }
        )
        commands.append(ReplacementCommand(source, "main.py", words, _list_ptuning_notes(values, folder)))
    return commands


def find_evaluation_folder(output: str, number: int = 0) -> str:
    """Return the folder of an evaluation's results: the script's own, unless it holds something else already.

    Args:
        output: the script's folder.
        number: of the evaluation, from 0, if there are several.
    """
    folder = Path(output)
    is_used = folder.is_dir() and any(folder.iterdir()) and not (folder / "metrics.json").is_file()
    name = str(folder / "eval") if is_used else output.rstrip("/") if number else output
    return f"{name}-{number + 1}" if number else name


def make_ptuning_options(values: Mapping[str, Any]) -> list[str]:
    """Return the options of `glmtune eval` about generation, for the flags of main.py."""
    length = values.get("generation_max_length") or values.get("val_max_target_length")
    return make_options(
        {
            "--max-new-tokens": length,
            "--batch-size": values.get("per_device_eval_batch_size") or values.get("per_gpu_eval_batch_size"),
            "--limit": values.get("max_predict_samples") or values.get("max_eval_samples"),
            **_PTUNING_SAMPLING,
            "--seed": values.get("seed"),
        }
    )


def _list_ptuning_notes(values: Mapping[str, Any], folder: str | None) -> list[str]:
    notes = ["Replies are sampled with temperature 0.95 and top-p 0.7, as in main.py; without these options: greedy."]
    if parse_number(values.get("num_beams") or 1) > 1:
        notes.append(f"--num_beams {values['num_beams']}: replies are sampled; beam search is not supported.")
    if values.get("pre_seq_len"):
        notes.append(f"--pre_seq_len {values['pre_seq_len']}: read from the checkpoint.")
    used = {
        *("model_name_or_path", "ptuning_checkpoint", "quantization_bit", "do_predict", "do_eval", "test_file"),
        *("validation_file", "output_dir", "max_source_length", "max_target_length", "prompt_column", "num_beams"),
        *("response_column", "history_column", "source_prefix", "generation_max_length", "val_max_target_length"),
        *("per_device_eval_batch_size", "per_gpu_eval_batch_size", "max_predict_samples", "max_eval_samples"),
        *("seed", "pre_seq_len"),
    }
    return [*_list_output_notes(values, folder), *notes, *list_ignored(values, used)]


def _list_output_notes(values: Mapping[str, Any], folder: str | None) -> list[str]:
    if not folder or Path(folder).parent != Path(str(values["output_dir"])):
        return []
    return [f"output_dir {values['output_dir']}: it has other files, so the results go to {folder}."]


def list_ignored(values: Mapping[str, Any], used: Iterable[str]) -> list[str]:
    """Return a note about the keys that have no effect on the command, if there are any."""
    ignored = [name for name in values if name not in set(used)]
    return [f"Not needed: {', '.join(ignored)}."] if ignored else []


def make_factory_evaluations(values: Mapping[str, Any], source: str) -> list[ReplacementCommand]:
    """Return the commands for the `do_predict` and `do_eval` of LLaMA-Factory: one for each data set.

    Raises:
        ConfigError: no model, no data, several adapters, or bits that are not supported.
    """
    target = make_factory_target(values, source)
    folder = str(values.get("dataset_dir") or "data")
    names = values.get("eval_dataset") or values.get("dataset")
    if not names:
        raise ConfigError(
            f"{source}: no eval_dataset, so there are no rows to evaluate on.", "Give eval_dataset: NAME."
        )
    entries = names if isinstance(names, list) else [name.strip() for name in str(names).split(",") if name.strip()]
    output = values.get("output_dir")
    length = {
        "data.max_length": parse_number(values.get("cutoff_len")),
        "data.max_source_length": parse_number(values.get("max_source_length")),
        "data.max_target_length": parse_number(values.get("max_target_length")),
    }
    if not any(length.values()):
        length["data.max_length"] = 2048
    commands = []
    for number, name in enumerate(entries):
        result = find_evaluation_folder(str(output), number) if output else None
        is_file = "/" in name or (Path(name).suffix != "" and Path(name).is_file())
        words = [
            "eval",
            *target,
            "--data",
            name if is_file else f"{folder}:{name}",
            *make_options({"--output": result}),
        ]
        words += make_options(
            {
                "--max-new-tokens": values.get("max_new_tokens", _FACTORY_SAMPLING["max_new_tokens"]),
                "--batch-size": values.get("per_device_eval_batch_size"),
                "--limit": values.get("max_samples"),
                "--temperature": values.get("temperature", _FACTORY_SAMPLING["temperature"]),
                "--top-p": values.get("top_p", _FACTORY_SAMPLING["top_p"]),
                "--seed": values.get("seed"),
            }
        )
        words += make_overrides({**length, "data.prefix": values.get("source_prefix")})
        used = {
            *("model_name_or_path", "adapter_name_or_path", "checkpoint_dir", "quantization_bit", "eval_dataset"),
            *("dataset", "dataset_dir", "output_dir", "cutoff_len", "max_source_length", "max_target_length"),
            *("max_new_tokens", "per_device_eval_batch_size", "max_samples", "temperature", "top_p", "seed"),
            *("do_predict", "do_eval", "source_prefix", "finetuning_type"),
        }
        notes = [*_list_output_notes(values, result), *list_ignored(values, used)]
        commands.append(ReplacementCommand(source, "LLaMA-Factory", words, notes))
    return commands


def make_factory_target(values: Mapping[str, Any], source: str) -> list[str]:
    """Return the model, `--base` and `--quantization` for the keys of LLaMA-Factory.

    Raises:
        ConfigError: no model, several adapters, or bits that are not supported.
    """
    model = values.get("model_name_or_path")
    adapters = str(values.get("adapter_name_or_path") or values.get("checkpoint_dir") or "")
    if not model and not adapters:
        raise ConfigError(f"{source}: no model_name_or_path.", "Give the folder or hub id of the model.")
    if "," in adapters:
        raise ConfigError(
            f"{source}: several adapters ({adapters}).", "Merge the first with glmtune export, and give one."
        )
    bits = parse_number(values.get("quantization_bit"))
    if bits not in (None, 0, *_BITSANDBYTES):
        raise ConfigError(f"{source}: quantization_bit {bits} is not supported.", "One of: 4, 8.")
    words = [adapters, *make_options({"--base": model})] if adapters else [str(model)]
    return [*words, *make_options({"--quantization": _BITSANDBYTES.get(bits)})]
