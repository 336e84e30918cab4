"""Small computations on the device: a training step, products with nf4 and packed4 weights.

Each is compared with the same on the CPU or in full precision: a kernel that gives wrong numbers is a fault too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from glmtune.utils.optional_packages import import_extra, is_installed

_HIDDEN, _VOCABULARY, _TOKENS = 64, 128, 24
_OUTPUTS, _INPUTS, _ROWS = 256, 512, 3


def list_trials() -> dict[str, Callable[[torch.device], str]]:
    """Trials by name; each takes a device and returns what is wrong, empty if nothing is."""
    trials: dict[str, Callable[[torch.device], str]] = {"training step": try_training_step}
    if is_installed("bitsandbytes"):
        trials["nf4 product"] = try_nf4_product
    return trials | {"packed4 product": try_packed4_product}


def try_training_step(device: torch.device) -> str:
    """Two steps of a tiny GLM through the trainer's loss; the first loss has to be that of the CPU, the next lower."""
    from transformers import AutoModelForCausalLM, GlmConfig

    from glmtune.data.batches import BlockCollator
    from glmtune.data.encoding import EncodedRow
    from glmtune.families import get_family
    from glmtune.models.packed_attention import set_packed_attention
    from glmtune.training.arguments import pick_precision
    from glmtune.training.loss import step_loss

    config = GlmConfig(
        vocab_size=_VOCABULARY,
        hidden_size=_HIDDEN,
        intermediate_size=2 * _HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        pad_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        ids = torch.randint(1, _VOCABULARY, (2, _TOKENS)).tolist()
    set_packed_attention(model)
    rows = [(number, EncodedRow(row, row, 0, number, "")) for number, row in enumerate(ids)]
    batch = BlockCollator(get_family("chatglm3"))([rows])
    with torch.no_grad():
        expected = float(step_loss(model, batch).mean())

    model.to(device)
    dtype = pick_precision("auto") if device.type == "cuda" else torch.float32
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        with torch.autocast(device.type, dtype, enabled=dtype is torch.bfloat16):
            loss = step_loss(model, batch.to(device)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    if abs(losses[0] - expected) > 0.02 * expected:
        return f"its loss is {losses[0]:.4f}, on the CPU {expected:.4f}"
    return "" if losses[1] < losses[0] else f"the loss rose from {losses[0]:.4f} to {losses[1]:.4f}"


def try_nf4_product(device: torch.device) -> str:
    """A product with an nf4 weight against the product with what it unpacks to, and its gradient."""
    bitsandbytes, functional = import_extra("bitsandbytes"), import_extra("bitsandbytes.functional")
    inputs_MI, weight_OI = _make_operands(device)
    packed, state = functional.quantize_4bit(weight_OI, quant_type="nf4")
    unpacked_OI = functional.dequantize_4bit(packed, state).float()
    inputs_MI.requires_grad_()
    outputs_MO = bitsandbytes.matmul_4bit(inputs_MI, packed.t(), quant_state=state)
    outputs_MO.float().sum().backward()
    problem = _compare(outputs_MO, inputs_MI.detach().float() @ unpacked_OI.T)
    return problem or _compare(inputs_MI.grad, unpacked_OI.sum(0).expand(_ROWS, -1), "gradient")


def try_packed4_product(device: torch.device) -> str:
    """A product with a packed4 weight against the product with what it unpacks to."""
    from torch import nn

    from glmtune.quantization.packed import dequantize
    from glmtune.quantization.packed_linear import PackedLinear

    inputs_MI, weight_OI = _make_operands(device)
    linear = nn.Linear(_INPUTS, _OUTPUTS, bias=False, device=device, dtype=weight_OI.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight_OI)
    layer = PackedLinear.from_linear(linear, 4)
    with torch.no_grad():
        outputs_MO = layer(inputs_MI)
    unpacked_OI = dequantize(layer.weight, layer.weight_scale, 4, torch.float32)
    return _compare(outputs_MO, inputs_MI.float() @ unpacked_OI.T)


def _make_operands(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(0)
    inputs_MI = torch.randn(_ROWS, _INPUTS, generator=generator).to(device, dtype)
    weight_OI = (torch.randn(_OUTPUTS, _INPUTS, generator=generator) * 0.05).to(device, dtype)
    return inputs_MI, weight_OI


def _compare(values: torch.Tensor | None, expected: torch.Tensor, name: str = "result") -> str:
    if values is None:
        return f"it gives no {name}"
    error = float((values.detach().float() - expected).abs().max() / expected.abs().max())
    return "" if error < 0.02 else f"its {name} is wrong (by {error:.0%} of the largest number)"
