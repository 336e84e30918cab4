"""Random models of the published shapes: built on the device, or written to a folder in the published layout.

Speed and memory do not depend on the values of the weights, so nothing is downloaded. `reference` is the small ChatGLM3
on which trainers are compared on a CPU; the others are the published models.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """The sizes that determine a model's cost."""

    family: str
    hidden: int
    layers: int
    ffn: int
    heads: int
    groups: int
    """Key and value heads; as many as `heads` in ChatGLM-6B."""
    vocabulary: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def layer_linears(self) -> int:
        """Weights in the matrices of one layer, all of which every token is multiplied with."""
        attention = self.hidden * (self.hidden + 2 * self.groups * self.head_dim) + self.hidden * self.hidden
        gates = 1 if self.family == "chatglm" else 2
        return attention + (gates + 1) * self.hidden * self.ffn

    @property
    def head(self) -> int:
        """Weights of the output layer."""
        return self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        """Weights in all matrices; norms and biases are not counted (less than a thousandth)."""
        return self.layers * self.layer_linears + 2 * self.head


SHAPES = {
    "tiny": Shape("chatglm3", 64, 2, 128, 4, 2, 512),
    "reference": Shape("chatglm3", 768, 12, 2560, 12, 2, 65024),
    "1.5b": Shape("chatglm3", 2048, 28, 6848, 16, 2, 65024),
    "chatglm-6b": Shape("chatglm", 4096, 28, 16384, 32, 32, 130528),
    "chatglm2-6b": Shape("chatglm2", 4096, 28, 13696, 32, 2, 65024),
    "chatglm3-6b": Shape("chatglm3", 4096, 28, 13696, 32, 2, 65024),
    "glm4-9b": Shape("glm4", 4096, 40, 13696, 32, 2, 151552),
}


def published_config(shape: Shape) -> dict[str, Any]:
    """The config.json of a published folder with this shape."""
    common = {
        "model_type": "chatglm",
        "glmtune_family": shape.family,
        "hidden_size": shape.hidden,
        "num_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "layernorm_epsilon": 1e-5,
        "torch_dtype": "float16",
    }
    if shape.family == "chatglm":
        marks = {"bos_token_id": 4, "eos_token_id": 5, "mask_token_id": 0, "gmask_token_id": 1}
        first = shape.vocabulary - 528  # special ids of the published vocabulary start here
        ids = {key: first + offset if first > 0 else offset for key, offset in marks.items()}
        own = {"inner_hidden_size": shape.ffn, "max_sequence_length": 2048, "position_encoding_2d": True}
        return common | ids | own | {"pad_token_id": 3, "vocab_size": shape.vocabulary}
    return common | {
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "ffn_hidden_size": shape.ffn,
        "kv_channels": shape.head_dim,
        "multi_query_attention": True,
        "multi_query_group_num": shape.groups,
        "padded_vocab_size": shape.vocabulary,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": 8192,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }


def read_shape(folder: Path) -> Shape:
    """The shape of a published folder, from its config.json."""
    from glmtune import detect_family

    config = json.loads((folder / "config.json").read_text("utf-8"))
    heads = config["num_attention_heads"]
    return Shape(
        detect_family(folder).name,
        config["hidden_size"],
        config["num_layers"],
        config.get("ffn_hidden_size") or config["inner_hidden_size"],
        heads,
        config.get("multi_query_group_num", heads),
        config.get("padded_vocab_size") or config["vocab_size"],
    )


def build_model(shape: Shape, dtype: Any, device: str, quantization: str | None = None) -> Any:
    """Build a model with random weights on its device.

    Args:
        shape: its sizes.
        dtype: of the weights, or of the products with quantised weights.
        device: `cpu` or `cuda`.
        quantization: as of `load_model`. The matrices are made in `dtype` and replaced one by one, so the peak while
            building is not that of loading.
    """
    import torch
    from transformers import AutoModelForCausalLM, GlmConfig, GlmForCausalLM

    from glmtune.families import get_family
    from glmtune.models.auto import read_published_config as native_config

    torch.manual_seed(0)
    config = native_config(published_config(shape), get_family(shape.family))
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if device != "meta":  # rotary frequencies are made on the CPU whatever the device
        model.to(device)
    if isinstance(model, GlmForCausalLM):  # as loading returns it, see glmtune.models.glm
        model.__class__, model.config.__class__ = GlmForCausalLM, GlmConfig
    if quantization:
        _quantize_model(model, quantization, dtype)
    model.config._name_or_path = model.name_or_path = "random"
    return model.eval()


def _quantize_model(model: Any, quantization: str, dtype: Any) -> None:
    from glmtune.models.loading import prepare_quantized_cpu
    from glmtune.quantization.quantizer import pack_model

    if quantization in ("packed4", "packed8"):
        pack_model(model, int(quantization[-1]))
        return
    import bitsandbytes
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.auto import AutoHfQuantizer

    bnb_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    for name, linear in list(_list_layer_linears(model)):
        layer = bitsandbytes.nn.Linear4bit(
            linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=dtype, quant_type="nf4"
        )
        layer.weight = bitsandbytes.nn.Params4bit(
            linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
        )
        layer.bias = linear.bias
        model.set_submodule(name, layer.to(linear.weight.device))  # moving it quantises it
    # Set as by transformers on a model that it quantised while loading: trainers and peft read it.
    model.config.quantization_config = bnb_config
    model.hf_quantizer = AutoHfQuantizer.from_config(bnb_config, pre_quantized=False)
    model.is_loaded_in_4bit = model.is_quantized = True
    model.quantization_method = bnb_config.quant_method
    if model.device.type == "cpu":
        prepare_quantized_cpu(model)


def _list_layer_linears(model: Any) -> Iterator[tuple[str, Any]]:
    from torch import nn

    head = model.get_output_embeddings()
    return ((name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head)


def find_cache() -> Path:
    """The folder of written models: `GLMTUNE_BENCH_MODELS`, else `~/.cache/glmtune/bench-models`."""
    folder = os.environ.get("GLMTUNE_BENCH_MODELS")
    return Path(folder) if folder else Path.home() / ".cache" / "glmtune" / "bench-models"


def write_published_folder(name: str, assets: Path, precision: str = "fp32") -> Path:
    """Write a folder in the published layout with random weights and the published tokenizer, if it is not there.

    Args:
        name: a key of `SHAPES`.
        assets: holds `assets/chatglm3-6b` and so on.
        precision: of the weights on disk.

    Raises:
        FileNotFoundError: the tokenizer is missing.
    """
    shape, folder = SHAPES[name], find_cache() / f"{name}-{precision}"
    source = assets / "assets" / f"{shape.family}-6b"
    if (folder / "config.json").is_file():
        return folder
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is missing; name the folder of the assets with --assets or GLMTUNE_ASSETS")
    _write_weights(shape, folder, precision)
    for file in source.iterdir():
        if file.name != "config.json":
            shutil.copyfile(file, folder / file.name)
    config = published_config(shape) | {"torch_dtype": {"fp32": "float32", "bf16": "bfloat16"}[precision]}
    (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")  # last: it marks the folder as complete
    return folder


def _write_weights(shape: Shape, folder: Path, precision: str) -> None:
    import torch
    from safetensors.torch import save_file

    from glmtune.models.auto import open_published_state

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(shape, {"fp32": torch.float32, "bf16": torch.bfloat16}[precision], device)
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in open_published_state(model).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def write_native_folder(published: Path, folder: Path) -> Path:
    """Write the same model and tokenizer as a transformers folder, which other trainers can read."""
    if (folder / "config.json").is_file():
        return folder
    from glmtune import load_model, load_tokenizer

    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    load_tokenizer(published).save_pretrained(temporary)
    load_model(published, device="cpu").save_pretrained(temporary)
    temporary.rename(folder)
    return folder
