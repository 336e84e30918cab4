"""Write a model as one GGUF file for llama.cpp and Ollama, and verify it by reading its weights back."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from glmtune.errors import ConfigError, ModelError
from glmtune.export.export_checks import (
    RELOAD_TOLERANCE,
    compute_logits,
    describe_quantization_effect,
    require_same_logits,
)
from glmtune.export.gguf_metadata import add_model_keys, add_vocabulary_keys, require_architecture
from glmtune.export.gguf_tensors import (
    FLOAT_TYPES,
    copy_gguf_tensor,
    list_tensors,
    make_name_map,
    read_gguf_tensors,
    write_gguf,
)
from glmtune.export.gguf_types import (
    PACKAGE_TYPES,
    PROGRAM_TYPES,
    QUANTIZE_PROGRAM,
    get_intermediate_type,
    require_type,
)
from glmtune.export.gguf_vocabulary import GgufVocabulary, make_vocabulary
from glmtune.export.layouts import find_main_dtype, list_pieces
from glmtune.export.modelfile import write_modelfile
from glmtune.utils.optional_packages import import_extra

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from glmtune.export.export_request import ExportRequest, ExportSource
    from glmtune.export.exporter import ExportSteps

DEFAULT_TYPE = "f16"
DEFAULT_ADAPTER_TYPE = "f32"


def choose_type(request: ExportRequest) -> str:
    """The file's type, where the request does not name one."""
    return request.gguf_type or (DEFAULT_ADAPTER_TYPE if request.adapter_only else DEFAULT_TYPE)


def require_gguf(source: ExportSource, request: ExportRequest) -> GgufVocabulary:
    """Refuse what cannot be a GGUF file; returns the vocabulary that it gets.

    Raises:
        ConfigError: an option that does not exist, or has no meaning here.
        ModelError: the model or its tokenizer cannot take that form, or something is not installed.
    """
    base = source.base
    if request.bits != 16:
        raise ConfigError(f"--bits {request.bits}: not with --format gguf.", "Use --type q8_0 or --type q4_0.")
    if request.max_shard_size != type(request).max_shard_size:
        raise ConfigError("--max-shard-size: a GGUF model is one file.", "Leave it out.")
    require_architecture(base)
    file_type = choose_type(request)
    require_type(file_type)
    if request.adapter_only and file_type not in FLOAT_TYPES:
        raise ConfigError(f"--type {file_type}: not for an adapter.", f"Known: {', '.join(FLOAT_TYPES)}.")
    if source.is_prefix:
        raise ModelError(
            f"{source.adapter}: a GGUF file cannot hold a P-Tuning prefix, and llama.cpp cannot load one.",
            "Serve it with glmtune, or train with method lora.",
        )
    if base.stored_quantization:
        raise ModelError(
            f"{base.folder}: its weights are in bitsandbytes' {base.stored_quantization}.",
            "Export from the model in full precision; --type q8_0 or q4_0 quantises it.",
        )
    return make_vocabulary(source.tokenizer, base.family, base.folder, base.config.vocab_size)


class GgufModelWriter:
    """Writes one model, given in memory.

    Args:
        model: whole, no adapter on it. After `verify` it has the file's values.
        source: what it was made from.
        request: the form.
        folder: where the file is written.
        steps: the line on the screen.
    """

    def __init__(
        self, model: PreTrainedModel, source: ExportSource, request: ExportRequest, folder: Path, steps: ExportSteps
    ):
        self._model, self._source, self._folder, self._steps = model, source, folder, steps
        self._type = choose_type(request)
        self._vocabulary = require_gguf(source, request)
        self._architecture = require_architecture(source.base)
        self._convert = make_name_map(self._architecture, source.base.config.num_hidden_layers)
        self.path = folder / f"model-{self._type}.gguf"

    def write(self, name: str) -> None:
        """Write the file and the Modelfile.

        Args:
            name: of the model for people.

        Raises:
            ModelError: a weight has no place in the architecture or no value in the type, or llama.cpp's program
                failed.
        """
        if self._type in PROGRAM_TYPES:
            full = self._folder / ".full.gguf"
            self._write_file(full, get_intermediate_type(find_main_dtype(self._model)), name)
            self._steps.begin(f"Quantising with {QUANTIZE_PROGRAM}")
            run_quantize_program(full, self.path, self._type)
            full.unlink()
        else:
            self._write_file(self.path, self._type, name)
        write_modelfile(self._folder, self.path.name, self._source.base.family, self._vocabulary)

    def verify(self, rows: list[list[int]], logits: torch.Tensor) -> list[str]:
        """Read the file's weights into the model in memory, and compare what it computes.

        Args:
            rows: ids of texts.
            logits: of the model before it was written.

        Raises:
            ModelError: a weight is missing, or the file is another model.
        """
        tensors = read_gguf_tensors(self.path)
        named = self._list_named()
        missing = sorted({self._convert(native) for native in named} ^ tensors.keys())
        if missing:
            raise ModelError(f"{self.path.name}: tensors are missing or left over: {', '.join(missing[:3])}.")
        with torch.no_grad():
            for native, value in named.items():
                copy_gguf_tensor(tensors[self._convert(native)], value)
        read = compute_logits(self._model, rows)
        dtype = find_main_dtype(self._model)
        exact = self._type == "f32" or FLOAT_TYPES.get(self._type) == dtype
        if exact:
            return [require_same_logits(read, logits, RELOAD_TOLERANCE[dtype], self.path.name)]
        if not torch.isfinite(read).all():
            raise ModelError(f"{self.path.name}: computes numbers that are not finite.", "Use --type bf16.")
        return [describe_quantization_effect(read, logits, f"{self._type}")]

    def _list_named(self) -> dict[str, torch.Tensor]:
        return {piece.name: piece.parts[0] for piece in list_pieces(self._model, "hf")}

    def _write_file(self, path: Path, kind: str, name: str) -> None:
        tensors = list_tensors(self._list_named(), self._convert, kind)
        writer = make_writer(path, self._architecture)
        add_model_keys(writer, self._source.base, name)
        add_file_type(writer, kind)
        add_vocabulary_keys(writer, self._vocabulary)
        self._steps.begin("Writing", sum(tensor.size for tensor in tensors))
        write_gguf(writer, tensors, path, self._steps.advance)


def make_writer(path: Path, architecture: str) -> Any:
    """A `gguf.GGUFWriter` for a new file."""
    gguf = import_extra("gguf")
    return gguf.GGUFWriter(path, architecture)


def add_file_type(writer: Any, kind: str) -> None:
    """Add the type of most tensors, one of `PACKAGE_TYPES`."""
    gguf = import_extra("gguf")
    name = "ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"
    writer.add_file_type(gguf.LlamaFileType[name])
    if kind not in FLOAT_TYPES:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def run_quantize_program(full: Path, out: Path, kind: str) -> None:
    """Quantise a file with llama.cpp's own program.

    Raises:
        ModelError: it failed; its last lines are in the message.
    """
    command = [QUANTIZE_PROGRAM, str(full), str(out), kind.upper()]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
    )
    if result.returncode or not out.is_file():
        last = " / ".join(line.strip() for line in result.stdout.splitlines()[-3:] if line.strip())
        raise ModelError(
            f"{QUANTIZE_PROGRAM} ended with code {result.returncode}: {last}",
            f"Update llama.cpp, or use a type that needs no program: {', '.join(PACKAGE_TYPES)}.",
        )
