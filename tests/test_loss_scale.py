"""A run in fp16 skips steps whose gradients are not finite, with torch's scaler of the loss and with DeepSpeed's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from glmtune.errors import TrainingError
from glmtune.training.loss_checks import LossChecks, ScaleCheck, find_loss_scale
from glmtune.training.trainer import GlmTrainer

deepspeed_scaler = pytest.importorskip("deepspeed.runtime.fp16.loss_scaler")


def make_engine(precision="fp16", scale=0):
    """What is asked of DeepSpeed's engine, with its own scaler."""
    scaler = deepspeed_scaler.DynamicLossScaler(2**16, 1000, 1, delayed_shift=2, consecutive_hysteresis=False)
    return SimpleNamespace(
        fp16_enabled=lambda: precision == "fp16",
        dynamic_loss_scale=lambda: scale == 0,
        initial_dynamic_scale=lambda: 2**16,
        optimizer=scaler,
    )


def make_trainer(engine, losses):
    """A trainer whose micro-batches had these losses, one a step, each followed by DeepSpeed's step."""
    trainer = GlmTrainer.__new__(GlmTrainer)
    trainer.accelerator = SimpleNamespace(scaler=None, deepspeed_engine_wrapped=SimpleNamespace(engine=engine))
    trainer.is_deepspeed_enabled = True
    trainer._scale_check, trainer._scaled_step, trainer._epoch_batches = ScaleCheck(), -1, 0
    trainer._loss_checks = LossChecks(str, lambda batch, mask: batch["rows"])
    trainer._describe_row = "row {}".format
    trainer.control = SimpleNamespace(should_log=False, should_evaluate=False, should_save=False)
    trainer.state = SimpleNamespace(global_step=0)
    trainer.args = SimpleNamespace(fp16=True)
    one = torch.tensor([1])

    def run_steps():
        for step, loss in enumerate(losses, start=1):
            trainer.state.global_step = step
            batch = {"target_positions": one, "row_lengths": one, "rows": one}
            trainer._loss_checks.add(step, torch.tensor(loss), torch.tensor([loss]), batch)
            engine.optimizer.update_scale(loss != loss)
            trainer._maybe_log_save_evaluate()

    return trainer, run_steps


@pytest.fixture(autouse=True)
def no_log(monkeypatch):
    monkeypatch.setattr(deepspeed_scaler.dist, "get_rank", lambda: 1)  # which prints nothing
    monkeypatch.setattr("transformers.Trainer._maybe_log_save_evaluate", lambda *_, **__: None)


@pytest.mark.parametrize("precision_and_scale", [("bf16", 0), ("fp16", 128)])
def test_a_scale_that_does_not_adapt_skips_nothing(precision_and_scale):
    wrapper = SimpleNamespace(engine=make_engine(*precision_and_scale))
    assert find_loss_scale(SimpleNamespace(scaler=None, deepspeed_engine_wrapped=wrapper)) is None
    assert find_loss_scale(SimpleNamespace(scaler=None)) is None


def test_before_the_first_step_the_scaler_has_its_initial_scale():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scale, initial = find_loss_scale(SimpleNamespace(scaler=scaler))
    assert (scale.item(), initial) == (1024.0, 1024.0)


def test_deepspeed_skips_one_step(capsys):
    trainer, run_steps = make_trainer(make_engine(), [1.0, float("nan"), 1.0])
    run_steps()
    trainer._check_losses()
    assert "The loss became nan at step 2 (rows row 1): skipped" in " ".join(capsys.readouterr().out.split())


def test_deepspeed_gives_up_before_its_own_error():
    """The scale can be halved 16 times, DeepSpeed leaves it as it is once, and nothing is logged meanwhile."""
    trainer, run_steps = make_trainer(make_engine(), [float("nan")] * 40)
    with pytest.raises(TrainingError, match="The loss became nan at step 1 ") as error:
        run_steps()
    assert "fp16 overflowed" in str(error.value)
    assert trainer.state.global_step == 11
