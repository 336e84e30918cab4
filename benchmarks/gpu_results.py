"""What the cells of `gpu.py` share: where they run, and how they print a result."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

MIB = 2**20
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Setup:
    """Where cells run."""

    device: str
    shape: str
    """`published`, or the shape that stands for all models."""

    def pick_shape(self, published: str) -> str:
        return published if self.shape == "published" else self.shape


def proof(name: str, ok: bool, **figures: Any) -> None:
    """Print numbers that must be right."""
    print(json.dumps({"kind": "proof", "name": name, "ok": bool(ok), "figures": figures}), flush=True)


def figure(name: str, **figures: Any) -> None:
    """Print numbers that are what they are."""
    print(json.dumps({"kind": "figure", "name": name, "ok": True, "figures": figures}), flush=True)
