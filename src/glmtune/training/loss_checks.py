"""Find losses that are not finite, or exactly 0 for long, without waiting for a GPU in every micro-batch.

Losses stay on the device until `read`, which transfers one number per micro-batch, all together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from glmtune.errors import TrainingError

# Micro-batches in a row with a loss of exactly 0 after which a run stops.
_MAX_ZERO_LOSSES = 8
# Targets of unread micro-batches: beyond them they are read, so that their losses never take more than some MB.
_MAX_UNREAD_TARGETS = 2**20
# Halvings of the loss scale in a row after which fp16 will not settle any more, and the smallest scale that helps.
_MAX_HALVINGS, _SMALLEST_SCALE = 10, 1.0


@dataclass(frozen=True)
class NonFiniteLoss:
    """A micro-batch whose loss is NaN or infinite."""

    step: int
    value: float
    rows: list[int]
    """Numbers of the rows with such losses."""


@dataclass(frozen=True)
class _UnreadLoss:
    step: int
    loss: torch.Tensor
    losses_M: torch.Tensor
    batch: dict[str, torch.Tensor]
    """Positions of the targets, on the device; lengths and numbers of the rows."""


@dataclass
class LossChecks:
    """The losses of micro-batches since they were read last."""

    describe_rows: Callable[[list[int]], str]
    """Names rows in messages."""
    find_rows: Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]
    """The numbers of the rows of a batch that losses belong to, by a mask of the losses."""
    stops_at_zero: bool = True
    _unread: list[_UnreadLoss] = field(default_factory=list)
    _targets: int = 0
    _zero_losses: int = 0

    def add(self, step: int, loss: torch.Tensor, losses_M: torch.Tensor, batch: dict[str, Any]) -> bool:
        """Add a micro-batch.

        Args:
            step: number of its optimiser step, from 1.
            loss: its loss as it is trained on.
            losses_M: of its targets or pairs.
            batch: from `BlockCollator`.

        Returns:
            Whether the losses should be read now: on a CPU they are there already, and on a GPU when they are many.
        """
        names = ("target_positions", "row_lengths", "rows")
        kept = {name: batch[name] for name in names}
        self._unread.append(_UnreadLoss(step, loss.detach(), losses_M.detach(), kept))
        self._targets += len(losses_M)
        return loss.device.type == "cpu" or self._targets >= _MAX_UNREAD_TARGETS

    def read(self) -> list[NonFiniteLoss]:
        """Read the losses; waits for the device once, however many there are.

        Returns:
            The micro-batches whose loss is not finite.

        Raises:
            TrainingError: the loss was exactly 0 too many times in a row.
        """
        unread, self._unread, self._targets = self._unread, [], 0
        if not unread:
            return []
        values = torch.stack([one.loss.float() for one in unread]).tolist()
        bad = []
        for one, value in zip(unread, values, strict=True):
            if not math.isfinite(value):
                bad.append(NonFiniteLoss(one.step, value, self.find_rows(one.batch, ~one.losses_M.isfinite()).tolist()))
            elif self.stops_at_zero and len(one.losses_M):  # idle blocks have none
                self._require_not_always_zero(one, value)
        return bad

    def _require_not_always_zero(self, one: _UnreadLoss, value: float) -> None:
        """Stop a run whose loss stays exactly 0, which has no gradient; once may be a coincidence."""
        self._zero_losses = self._zero_losses + 1 if value == 0 else 0
        if self._zero_losses < _MAX_ZERO_LOSSES:
            return
        raise TrainingError(
            f"The loss is exactly 0 at step {one.step}, {_MAX_ZERO_LOSSES} batches in a row "
            f"(now rows {self.describe_rows(one.batch['rows'].tolist())}).",
            "Likely cause: the model has memorised the rows (too many epochs), or its output overflowed: "
            "look at the rows with `glmtune data preview`, or use bf16 or fp32.",
        )


def find_loss_scale(accelerator: Any) -> tuple[torch.Tensor, float] | None:
    """The loss scale of a run in fp16 that adapts to the gradients: torch's GradScaler or DeepSpeed's.

    Args:
        accelerator: accelerate's, with the prepared model.

    Returns:
        The scale, on its device, and that before the first step; None where steps are not skipped.
    """
    scaler = getattr(accelerator, "scaler", None)
    if scaler is not None and scaler.is_enabled():
        # Private: the public method waits for the device. Before the first step there is none.
        scale = scaler._scale if scaler._scale is not None else torch.tensor(scaler._init_scale)
        return scale, scaler._init_scale
    wrapper = getattr(accelerator, "deepspeed_engine_wrapped", None)
    engine = wrapper.engine if wrapper is not None else None
    if engine is None or not engine.fp16_enabled() or not engine.dynamic_loss_scale():
        return None
    return torch.tensor(float(engine.optimizer.loss_scale)), float(engine.initial_dynamic_scale())


class ScaleCheck:
    """Whether the loss scale of a run in fp16 settles; followed on the device, like the losses.

    A fused optimiser skips its step on the device, so that nothing but the scale says that it did.
    """

    def __init__(self) -> None:
        self._state_3: torch.Tensor | None = None
        """The scale, its halvings in a row, and the most of them so far."""

    def add(self, scale: torch.Tensor, initial: float) -> None:
        """Add an optimiser step.

        Args:
            scale: after it.
            initial: before the first step.
        """
        if self._state_3 is None:
            self._state_3 = torch.tensor([initial, 0.0, 0.0]).to(scale.device, non_blocking=True)
        last, halvings, most = self._state_3.unbind()
        scale = scale.detach().reshape(())
        halvings = (halvings + 1) * (scale < last)
        self._state_3 = torch.stack([scale, halvings, most.maximum(halvings)])

    def is_hopeless(self) -> bool:
        """Whether the scale was halved ten times in a row, or to its floor; waits for the device."""
        if self._state_3 is None:
            return False
        scale, halvings, most = self._state_3.tolist()
        return most >= _MAX_HALVINGS or (halvings > 0 and scale <= _SMALLEST_SCALE)
