"""The model to plan for: a run's base and method, built on torch's meta device with any number of layers."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from glmtune.config import RunConfig
from glmtune.errors import ModelError
from glmtune.families import Family, family_from_folder, get_family
from glmtune.hub import resolve_checkpoint
from glmtune.methods import make_method
from glmtune.models.auto import find_family, make_native_config, read_packed_bits
from glmtune.models.checkpoints import Checkpoint, read_stored_quantization
from glmtune.models.glm_layers import fuse_layers
from glmtune.models.loading import BITSANDBYTES, PACKED
from glmtune.models.packed_attention import set_packed_attention
from glmtune.models.tokenizers.new_tokens import NewTokens
from glmtune.models.vocabulary_rows import fit_vocabulary_size
from glmtune.models.weight_files import has_equal_head, read_inventory
from glmtune.quantization.packed_linear import PackedLinear
from glmtune.quantization.quantizer import replace_linears
from glmtune.training.sharding import shards_weights
from glmtune.utils.io import read_json_object

_INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")

# bitsandbytes' nf4: weights that share a scale, and scales that share a scale with double quantisation.
_NF4_BLOCK, _NF4_SCALE_BLOCK = 64, 256


@dataclass
class ModelSpec:
    """What a plan needs of a base; the weights may be absent."""

    folder: Path
    family: Family
    config: PreTrainedConfig
    dtype: torch.dtype
    """The precision on disk."""
    quantization: str | None
    """`nf4`, `int8`, `packed4` or `packed8` where the checkpoint itself is quantised."""
    file_bytes: int
    """Bytes of the weight files; 0 where they are absent."""
    shares_head: bool = False
    """Whether embedding and head are equal, and so one matrix in memory."""
    new_tokens: NewTokens | None = None
    """That the run adds to the base's vocabulary."""

    @property
    def layers(self) -> int:
        """Number of layers of the full model."""
        return int(self.config.num_hidden_layers)

    @classmethod
    def from_base(cls, base: Checkpoint) -> ModelSpec:
        """The spec of a base that was inspected."""
        files = sorted({weight.file for weight in base.inventory.weights.values()})
        quantization, size = _find_quantization(base.config), _count_file_bytes(base.folder, files)
        shares_head = has_equal_head(base.inventory)
        return cls(base.folder, base.family, base.config, base.inventory.dtype, quantization, size, shares_head)

    def with_tokens(self, new_tokens: NewTokens | None) -> ModelSpec:
        """The spec with tokens that a run adds, for which embedding and head may grow."""
        if not new_tokens:
            return self
        config = copy.deepcopy(self.config)
        config.vocab_size = max(config.vocab_size, new_tokens.rows)
        return dataclasses.replace(self, config=config, new_tokens=new_tokens)


def inspect_model(path: str, family: str | None, hub: str) -> ModelSpec:
    """Read config.json, and the headers of the weight files if they are there. A hub's weights are not downloaded.

    Raises:
        ModelError: no such folder, or a config.json that cannot be used.
    """
    folder = resolve_checkpoint(path, hub, "tokenizer")
    model_family = get_family(family) if family else find_family(folder, name=path) or family_from_folder(folder)
    config = make_native_config(folder, model_family)
    files = [file for pattern in ("*.safetensors", "pytorch_model*.bin") for file in folder.glob(pattern)]
    dtype: Any = getattr(config, "dtype", None) or torch.float16
    shares_head = model_family.published_head_is_embedding
    if files:
        try:
            inventory = read_inventory(folder)
            dtype, shares_head = inventory.dtype, has_equal_head(inventory)
        except ModelError:  # an incomplete download: a plan does not need it
            files = []
        else:
            fit_vocabulary_size(config, inventory, model_family.name)
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype)
    size = _count_file_bytes(folder, files)
    return ModelSpec(folder, model_family, config, dtype, _find_quantization(config), size, shares_head)


def _count_file_bytes(folder: Path, files: list[Path]) -> int:
    """Bytes of the weights on disk; a repository that has them in two formats counts once."""
    for name in _INDEX_FILES:
        if (folder / name).is_file():
            weight_map = read_json_object(folder / name, ModelError).get("weight_map")
            files_named = weight_map.values() if isinstance(weight_map, dict) else ()
            indexed = {file for file in files_named if isinstance(file, str)}
            return sum((folder / file).stat().st_size for file in indexed if (folder / file).is_file())
    one_format = [file for file in files if file.suffix == ".safetensors"] or files
    return sum(file.stat().st_size for file in one_format)


def _find_quantization(config: PreTrainedConfig) -> str | None:
    bits = read_packed_bits(config)
    return f"packed{bits}" if bits else read_stored_quantization(config)


def find_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of a model: its longest list of modules."""
    return max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len)


def build_meta_model(
    spec: ModelSpec, run: RunConfig, precision: torch.dtype, mixed: bool, layers: int, trained: int
) -> Any:
    """Build the model of a run on the meta device and prepare it with the run's method.

    Args:
        spec: the base.
        run: its settings.
        precision: of the frozen weights.
        mixed: whether the run computes under autocast.
        layers: number of layers to build.
        trained: number of them that the method freeze trains.

    Raises:
        ConfigError: the method does not support this model.
    """
    config = copy.deepcopy(spec.config)
    config.num_hidden_layers = layers
    run = dataclasses.replace(run, freeze=dataclasses.replace(run.freeze, trainable_layers=trained))
    method = make_method(run, spec.family, precision if mixed else torch.float32, spec.new_tokens)
    dtype = method.load_dtype(precision) or spec.dtype
    quantization = spec.quantization or run.model.quantization
    config.quantization_config = None
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
        if spec.shares_head and not shards_weights(run):
            model.get_output_embeddings().weight = model.get_input_embeddings().weight
        if quantization in PACKED:
            replace_linears(model, PACKED[quantization])
        elif quantization in BITSANDBYTES:
            replace_with_meta_linears(model, quantization, dtype, run.model.double_quantization)
        if run.model.head_quantization:
            model.set_output_embeddings(_quantize_meta_head(model, run))
        if run.model.embedding_on_host:
            model.set_input_embeddings(_MetaHostEmbedding(model.get_input_embeddings()))
        if run.model.attention == "eager":
            model.set_attn_implementation("eager")
        fuse_layers(model)
        set_packed_attention(model)
        return method.prepare(model)


def _quantize_meta_head(model: Any, run: RunConfig) -> nn.Module:
    head, quantization = model.get_output_embeddings(), run.model.head_quantization
    assert quantization is not None
    if quantization in PACKED:
        return PackedLinear(head.in_features, head.out_features, PACKED[quantization], False, head.weight.dtype)
    return MetaLinear(head, quantization, head.weight.dtype, run.model.double_quantization)


class _MetaHostEmbedding(nn.Module):
    """As `HostEmbedding`, for tracing: rows of the right size on the device of the ids."""

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        self._size, self._dtype = embedding.embedding_dim, embedding.weight.dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.empty(*ids.shape, self._size, dtype=self._dtype, device=ids.device)


def replace_with_meta_linears(model: Any, quantization: str, dtype: torch.dtype, double: bool) -> None:
    """Replace all linear layers but the head by `MetaLinear`.

    Args:
        model: on the meta device.
        quantization: `nf4` or `int8`.
        dtype: of the products.
        double: quantise nf4's scales too.
    """
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and module is not head:
            model.set_submodule(name, MetaLinear(module, quantization, dtype, double))


class MetaLinear(nn.Linear):
    """A linear layer whose weight has as many bytes as bitsandbytes' quantised one, for tracing.

    bitsandbytes' own parameters cannot be on the meta device. The memory follows `MatMul4Bit`, `MatMul8bitLt` and
    `MatMul8bitFp` of bitsandbytes 0.50: the weight is unpacked as a whole for each product, forward and backward, and
    not kept; int8 keeps the layer's input for the backward pass, nf4 does not.
    """

    def __init__(self, linear: nn.Linear, quantization: str, dtype: torch.dtype, double: bool):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta", dtype=dtype)
        count = linear.weight.numel()
        if quantization == "int8":
            size = count + 4 * linear.out_features
        else:
            scales = -(-count // _NF4_BLOCK)
            # Every matrix has a table of 16 fp32 numbers, and with double quantisation the mean of its scales.
            size = count // 2 + 4 * 16 + (scales + 4 * -(-scales // _NF4_SCALE_BLOCK) + 4 if double else 4 * scales)
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8, device="meta"), requires_grad=False)
        self.quantization, self.compute_dtype = quantization, dtype

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            inputs = inputs.to(torch.get_autocast_dtype("cpu"))
        outputs = _UnpackAndMultiplyMeta.apply(inputs, self)
        return outputs.clone() if self.quantization == "nf4" else outputs  # as peft does after 4-bit layers

    def unpack(self, dtype: torch.dtype) -> torch.Tensor:
        """A tensor with the shape of the unpacked weight."""
        shape = self.out_features, self.in_features
        return torch.empty(shape, dtype=self.compute_dtype, device=self.weight.device).to(dtype)


class _UnpackAndMultiplyMeta(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, layer: MetaLinear) -> torch.Tensor:
        ctx.layer, ctx.inputs = layer, inputs if layer.quantization == "int8" else None
        return F.linear(inputs, layer.unpack(inputs.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.unpack(gradient.dtype), None
