"""`glmtune export`: merge, convert, quantise, write, and verify the folder by loading it again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from glmtune.export.adapters import (
    PREFIX_FOLDER,
    describe_prefix_loading,
    make_base_info,
    write_lora,
    write_prefix_folder,
)
from glmtune.export.export_checks import (
    MERGE_TOLERANCE,
    RELOAD_TOLERANCE,
    compute_logits,
    describe_quantization_effect,
    make_probe_rows,
    require_effect,
    require_merged,
    require_same_logits,
    require_tokenizer,
)
from glmtune.export.export_request import BITSANDBYTES, ExportRequest, ExportSource, open_source, require_possible
from glmtune.export.folder import create_folder, require_free_folder
from glmtune.export.gguf_adapter import ADAPTER_FILE, write_gguf_adapter
from glmtune.export.gguf_export import GgufModelWriter, choose_type
from glmtune.export.layouts import find_main_dtype, list_pieces, write_hf_files, write_official_files
from glmtune.export.published_config import make_published_config
from glmtune.export.reward_export import require_reward_export, write_reward_model
from glmtune.export.shards import parse_shard_size, write_shards
from glmtune.methods.lora import load_adapter
from glmtune.methods.lora_merge import merge_adapter
from glmtune.methods.ptuning import load_prefix, remove_prefix
from glmtune.models.checkpoints import inspect_checkpoint
from glmtune.models.devices import parse_device
from glmtune.models.loading import load_base, prepare_quantized_cpu
from glmtune.models.tokenizers import load_tokenizer
from glmtune.quantization.packed_linear import PackedLinear
from glmtune.quantization.quantizer import pack_model
from glmtune.utils.console import get_console, silence_libraries
from glmtune.utils.io import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ExportResult:
    """What was written."""

    folder: Path
    source: ExportSource
    messages: list[str]
    """Measured differences, and what the user should know."""


def export_model(
    target: str,
    out: Path,
    request: ExportRequest,
    *,
    base: str | None = None,
    family: str | None = None,
    hub: str = "huggingface",
) -> ExportResult:
    """Export a model to a folder for other engines, and verify it by loading it again.

    Args:
        target: a run, an adapter, a checkpoint folder or a hub id.
        out: a new or empty folder.
        request: the form.
        base: of the adapter, if it is no longer where the adapter was trained.
        family: the generation, for folders that do not say it.
        hub: where a hub id is looked up.

    Raises:
        ConfigError: an option that does not exist, or has no meaning here.
        ModelError: the base cannot take that form, the disk is too small, or a check failed; then nothing is left.
        RunError: `out` is in use, or the adapter belongs to another base.
    """
    silence_libraries()
    out = out.expanduser().absolute()
    require_free_folder(out)
    source = open_source(target, base, family, hub)
    if source.is_reward_model:
        require_reward_export(source, request)
    require_possible(source, request, out)
    with create_folder(out) as folder, show_steps() as steps:
        if source.is_reward_model:
            return ExportResult(out, source, write_reward_model(source, request, folder, steps))
        exporter = _Exporter(source, request, folder, out, steps)
        if request.adapter_only:
            exporter.write_adapter_alone()
        else:
            exporter.write_whole()
    return ExportResult(out, source, exporter.messages)


class _Exporter:
    """One export. Only one model is in memory at a time: `self._model`."""

    def __init__(self, source: ExportSource, request: ExportRequest, folder: Path, out: Path, steps: ExportSteps):
        self._source, self._request, self._folder, self._out, self._steps = source, request, folder, out, steps
        self._device = parse_device(request.device)
        self._rows = make_probe_rows(source.base.family, source.tokenizer)
        self._model: Any = None
        self.messages: list[str] = []

    def write_whole(self) -> None:
        """The model, its files, and the prefix where there is one."""
        source, request = self._source, self._request
        logits, tuned = self._load_full_model()
        if request.layout == "gguf":
            self._write_gguf(logits)
            return
        quantises = request.bits < 16 and not source.base.packed_bits
        if quantises:
            self._quantise()
        dtype = find_main_dtype(self._model)
        self._write_model(self._folder, request.layout)
        if quantises:
            full, logits = logits, compute_logits(self._model, self._rows)
            self.messages.append(describe_quantization_effect(logits, full, f"{request.bits} bits"))
        self._steps.begin("Loading what was written")
        self._free()
        self._model = self._reload()
        self.messages.append(
            require_same_logits(compute_logits(self._model, self._rows), logits, RELOAD_TOLERANCE[dtype], "the folder")
        )
        require_tokenizer(make_probe_rows(source.base.family, self._load_written_tokenizer()), self._rows)
        if source.is_prefix:
            self._write_prefix_subfolder(tuned, dtype)
        self._free()

    def write_adapter_alone(self) -> None:
        """Write the adapter without its base, and compare it with the original on the base."""
        source = self._source
        assert source.adapter is not None
        if self._request.layout == "gguf":
            path = self._folder / ADAPTER_FILE
            self.messages.append(write_gguf_adapter(source.adapter, source.base, choose_type(self._request), path))
            return
        if source.is_prefix:
            base = source.base
            self._write_prefix(self._folder, make_base_info(base, base.folder))
        else:
            write_lora(source.adapter, source.base, source.tokenizer, self._request.layout, self._folder)
        self._steps.begin("Comparing it with the original")
        original, exported = (self._compute_logits_with(adapter) for adapter in (source.adapter, self._folder))
        # Published matrices are fused, so the adapter's sums may run in another order.
        self.messages.append(
            require_same_logits(exported, original, MERGE_TOLERANCE[source.dtype(self._request)], "the adapter")
        )

    def _write_gguf(self, logits: torch.Tensor) -> None:
        writer = GgufModelWriter(self._model, self._source, self._request, self._folder, self._steps)
        writer.write(self._out.name)
        self._steps.begin("Reading what was written")
        self.messages += writer.verify(self._rows, logits)
        self._free()

    def _compute_logits_with(self, adapter: Path) -> torch.Tensor:
        base = load_base(self._source.base, dtype=self._request.dtype, device=self._device)
        load = load_prefix if self._source.is_prefix else load_adapter
        logits = compute_logits(load(base, adapter).eval(), self._rows)
        del base
        self._free()
        return logits

    def _load_full_model(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Load the base with a LoRA adapter merged; returns its logits, and those of base and prefix."""
        source, request = self._source, self._request
        self._steps.begin("Loading the model")
        self._model = load_base(source.base, dtype=request.dtype, device=self._device)
        if source.base.packed_bits and request.bits == 16:
            self._model = unpack_model(self._model, find_main_dtype(self._model))
            self.messages.append(
                f"The base was in {source.base.packed_bits} bits; what that lost does not come back in 16."
            )
        self._steps.begin("Computing logits")
        logits = compute_logits(self._model, self._rows)
        if source.adapter is None:
            return logits, logits
        if source.is_lora:
            logits = self._merge(logits)
            return logits, logits
        if source.base_quantization and request.bits == 16:
            self.messages.append(
                f"The prefix was trained on the base in {source.base_quantization}; here the base is unquantised."
            )
        tuned = compute_logits(load_prefix(self._model, source.adapter).eval(), self._rows)
        remove_prefix(self._model)
        require_effect(tuned, logits, source.adapter)
        return logits, tuned

    def _merge(self, base: torch.Tensor) -> torch.Tensor:
        source = self._source
        assert source.adapter is not None
        if source.base_quantization:
            self.messages.append(
                f"Trained on the base in {source.base_quantization}; "
                f"merged into its full precision, {source.base.folder}."
            )
        wrapped = load_adapter(self._model, source.adapter).eval()
        tuned = compute_logits(wrapped, self._rows)
        require_effect(tuned, base, source.adapter)
        self._steps.begin("Merging the adapter")
        self._model = merge_adapter(wrapped).eval()
        merged = compute_logits(self._model, self._rows)
        self.messages += require_merged(merged, tuned, base, find_main_dtype(self._model))
        return merged

    def _quantise(self) -> None:
        bits = self._request.bits
        self._steps.begin(f"Quantising to {bits} bits")
        if self._request.layout == "official":
            self._model = pack_model(self._model, bits)
        else:
            self._load_quantised(BITSANDBYTES[bits])

    def _load_quantised(self, quantization: str) -> None:
        """Through a folder in full precision where there is a merged model: bitsandbytes quantises while it reads."""
        base, dtype = self._source.base, self._request.dtype
        if not self._source.is_lora:
            self._free()
            self._model = load_base(base, quantization=quantization, dtype=dtype, device=self._device)
            return
        with TemporaryDirectory(dir=self._folder, prefix=".full-") as name:
            self._write_model(Path(name), "hf")
            self._free()
            merged = inspect_checkpoint(name, family=base.family.name)
            self._model = load_base(merged, quantization=quantization, dtype=dtype, device=self._device)

    def _write_model(self, folder: Path, layout: str) -> None:
        source, request, model = self._source, self._request, self._model
        pieces = list_pieces(model, layout)
        self._steps.begin("Writing", sum(piece.size for piece in pieces))
        write_shards(pieces, folder, parse_shard_size(request.max_shard_size), self._steps.advance)
        if layout == "hf":
            write_hf_files(model, source.base, source.tokenizer, folder)
        else:
            bits = request.bits if request.bits < 16 else None
            write_official_files(model, source.base, source.tokenizer, bits, folder)

    def _reload(self) -> Any:
        if self._request.layout == "hf" and self._request.bits < 16:
            model: Any = AutoModelForCausalLM.from_pretrained(self._folder, device_map={"": self._device})
            if self._request.bits == 4 and self._device.type == "cpu":
                prepare_quantized_cpu(model)
            return model.eval()
        written = inspect_checkpoint(self._folder, family=self._source.base.family.name)
        return load_base(written, device=self._device)

    def _load_written_tokenizer(self) -> Any:
        if self._request.layout == "hf":
            return AutoTokenizer.from_pretrained(self._folder)
        return load_tokenizer(self._folder, family=self._source.base.family.name)

    def _write_prefix_subfolder(self, tuned: torch.Tensor, dtype: torch.dtype) -> None:
        """The prefix in a folder of its own; `self._model` is the written base."""
        request, prefix = self._request, self._folder / PREFIX_FOLDER
        written = inspect_checkpoint(self._folder, family=self._source.base.family.name)
        self._write_prefix(prefix, make_base_info(written, self._out))
        logits = compute_logits(load_prefix(self._model, prefix).eval(), self._rows)
        if request.bits < 16 and not self._source.base.packed_bits:
            self.messages.append(describe_quantization_effect(logits, tuned, "base and prefix"))
        else:
            self.messages.append(require_same_logits(logits, tuned, RELOAD_TOLERANCE[dtype], "base and prefix"))
        lines = describe_prefix_loading(self._out / PREFIX_FOLDER, request.layout)
        write_text(prefix / "README.txt", "\n".join(lines) + "\n")
        self.messages += lines[:2]

    def _write_prefix(self, folder: Path, base_info: Any) -> None:
        source, request = self._source, self._request
        base = source.base
        assert source.adapter is not None
        published: dict[str, Any] = {}
        if request.layout == "official":
            bits = request.bits if request.bits < 16 else None
            published = make_published_config(base.folder, base.config, base.family, source.dtype(request), bits)
        write_prefix_folder(source.adapter, base, request.layout, folder, published, base_info)

    def _free(self) -> None:
        self._model = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


@torch.no_grad()
def unpack_model(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Replace packed linears by plain ones with the same values, one layer at a time.

    Args:
        model: with packed layers; changed in place.
        dtype: of the new weights.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedLinear):
            with torch.device("meta"):
                linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            linear.weight = nn.Parameter(module.dequantize_weight(dtype), requires_grad=False)
            if module.bias is not None:
                linear.bias = module.bias
            model.set_submodule(name, linear)
    model.config.quantization_bit = None
    return model


class ExportSteps:
    """One line on the screen: the step at work, and how far it is where that is known."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self._task: TaskID | None = None

    def begin(self, description: str, total: int | None = None) -> None:
        """Start a step.

        Args:
            description: of the step.
            total: bytes that it will write; None if unknown.
        """
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(description, total=total)

    def advance(self, count: int) -> None:
        """Count written bytes."""
        if self._task is not None:
            self._progress.advance(self._task, count)


@contextmanager
def show_steps() -> Iterator[ExportSteps]:
    """Show the steps of the block, and remove them afterwards."""
    console = get_console()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield ExportSteps(progress)
