"""A compiled step with a cache of fixed size, for GPUs, where small operations wait for the CPU to launch them.

torch compiles the forward pass of one token per row, and on a GPU records it as a CUDA graph. Compilation takes time at
the first reply and pays off over many; so it is an option (`--compile`). What is compiled is the model as it
is, adapter, prefix and packed weights included. On a CPU prepacked weights (`cpu_prepack.py`) are faster.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from transformers import StaticCache
from transformers.cache_utils import Cache

from glmtune.errors import ConfigError, summarize_error
from glmtune.models.devices import parse_device
from glmtune.training.memory import is_out_of_memory

# Sizes of a cache are multiples of this: one compiled step then serves prompts and replies of many lengths.
_LENGTH_STEP = 512
# Steps that are compiled at most: one per number of rows and size of the cache.
_MAX_COMPILED_STEPS = 64


class CompiledStep:
    """The forward pass of one token per row, and the cache that it was compiled for.

    Args:
        model: a causal language model, not wrapped.
        backend: of `torch.compile`.
    """

    def __init__(self, model: Any, backend: str = "inductor"):
        graphs = backend == "inductor" and model.device.type == "cuda"
        self._config = model.config
        mode = "reduce-overhead" if graphs else None
        self._step = torch.compile(model.__call__, backend=backend, mode=mode, dynamic=False)
        self._cache: Cache | None = None
        self._cache_size = (0, 0)

    def new_cache(self, rows: int, length: int) -> Cache:
        """Make a cache for `length` tokens of each row. One of the same size is reused: a new one costs a graph.

        So only one reply can be generated at a time.
        """
        size = (rows, -(-length // _LENGTH_STEP) * _LENGTH_STEP)
        if self._cache is None or size != self._cache_size:
            self._cache = StaticCache(config=self._config, max_cache_len=size[1])
            self._cache_size = size
        else:
            self._cache.reset()
        return self._cache

    def __call__(self, **inputs: Any) -> Any:
        """What the model's forward pass returns.

        Raises:
            ConfigError: torch cannot compile here.
        """
        try:
            with torch._dynamo.config.patch(recompile_limit=_MAX_COMPILED_STEPS):
                return self._step(**inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            inner = getattr(error, "inner_exception", error)
            if is_out_of_memory(inner):
                raise inner from error
            reason = summarize_error(inner, 200)
            raise ConfigError(
                f"torch cannot compile the model here ({type(error).__name__}: {reason}).", "Leave out --compile."
            ) from error


def compile_step(model: Any, backend: str = "inductor") -> None:
    """Let `decode_tokens` run a compiled step of this model; it is compiled with the first reply.

    Args:
        model: in eval mode, on the device where it stays; peft's wrapper or not.
        backend: of `torch.compile`.
    """
    bare = unwrap_model(model)
    bare._compiled_step = CompiledStep(bare, backend)


def unwrap_model(model: Any) -> Any:
    """The model without peft's wrapper; adapters are part of it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def find_compiled_step(model: Any) -> CompiledStep | None:
    """What `compile_step` made for this model, wrapped by peft or not."""
    return getattr(model, "_compiled_step", None)


def require_gpu(device: str | None) -> None:
    """Require a CUDA device for `--compile`, before the model is loaded.

    Raises:
        ConfigError: it is no CUDA device.
    """
    if parse_device(device).type != "cuda":
        raise ConfigError("--compile is for a CUDA GPU: on a CPU the step is faster as it is.", "Leave it out.")
