"""Training and decoding do not wait for the device: what describes rows is on the CPU, losses are read when logging."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from conftest import REPOSITORY, find_asset
from glmtune.data.batches import BlockCollator, RowBatch
from glmtune.data.encoding import EncodedRow
from glmtune.errors import TrainingError
from glmtune.families import get_family
from glmtune.training import loss_checks
from glmtune.training.loss_checks import LossChecks, ScaleCheck
from glmtune.training.objective import TokenObjective

FIND_ROWS = TokenObjective().find_rows


def make_batch(device="cpu"):
    rows = [EncodedRow([5, 6, 7, 8], [-100, -100, 7, 8], 0, number, "") for number in range(3)]
    return BlockCollator(get_family("chatglm2"))([list(enumerate(rows))]).to(device)


def test_what_describes_rows_stays_on_the_cpu():
    batch = make_batch("meta")
    places = {key: value.device.type for key, value in batch.items()}
    on_cpu = {"row_lengths", "contexts", "rows", "tokens"}
    assert isinstance(batch, RowBatch)
    assert {key for key, place in places.items() if place == "cpu"} == on_cpu


def add_losses(checks, *losses, step=1):
    batch = make_batch()
    for values in losses:
        losses_N = torch.tensor(values)
        checks.add(step, losses_N.mean(), losses_N, batch)


def test_a_loss_that_is_not_finite_is_found_later_with_its_rows():
    checks = LossChecks(str, FIND_ROWS)
    add_losses(checks, [1.0] * 6)
    add_losses(checks, [1.0, 1.0, float("nan"), 1.0, 1.0, float("inf")], step=2)
    (bad,) = checks.read()
    assert (bad.step, bad.rows) == (2, [1, 2])
    assert bad.value != bad.value
    assert checks.read() == []


def test_losses_are_read_at_once_on_a_cpu_and_when_they_are_many(monkeypatch):
    batch, losses_N = make_batch(), torch.ones(6)
    assert LossChecks(str, FIND_ROWS).add(1, losses_N.mean(), losses_N, batch)
    on_device = torch.ones(6, device="meta")
    monkeypatch.setattr(loss_checks, "_MAX_UNREAD_TARGETS", 12)
    checks = LossChecks(str, FIND_ROWS)
    assert [checks.add(1, on_device.mean(), on_device, batch) for _ in range(2)] == [False, True]


def test_losses_of_zero_are_counted_over_reads():
    checks, evaluation = LossChecks(str, FIND_ROWS), LossChecks(str, FIND_ROWS, stops_at_zero=False)
    for _ in range(7):
        add_losses(checks, [0.0] * 6)
        checks.read()
    add_losses(evaluation, *[[0.0] * 6] * 9)
    evaluation.read()
    add_losses(checks, [1.0] * 6, *[[0.0] * 6] * 8, step=9)
    with pytest.raises(TrainingError, match=r"exactly 0 at step 9, 8 batches in a row \(now rows \[0, 1, 2\]\)"):
        checks.read()


@pytest.mark.parametrize(
    ("scales", "is_hopeless"),
    [
        ([2.0**-n * 65536 for n in range(1, 11)], True),
        ([2.0**-n * 65536 for n in range(1, 10)], False),
        ([2.0**-n * 65536 for n in (*range(1, 10), 9, *range(10, 15))], False),  # one step was taken
        ([4.0, 2.0, 1.0], True),
        ([1.0, 1.0], False),  # it stays there
        ([2.0**-n * 65536 for n in range(1, 11)] + [128.0], True),  # read later
    ],
)
def test_a_loss_scale_that_does_not_settle(scales, is_hopeless):
    check = ScaleCheck()
    assert not check.is_hopeless()
    for scale in scales:
        check.add(torch.tensor([scale]), 65536.0 if scales[0] > 100 else scales[0] * 2 if scales[0] > 1 else 1.0)
    assert check.is_hopeless() is is_hopeless


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1] + "/benchmarks")
import json, pathlib, fake_counts
fake = fake_counts.start_fake_device(pathlib.Path(sys.argv[2]))
import warnings; warnings.simplefilter("ignore")
import bitsandbytes, peft, glmtune
fake_counts.count_norms_once(fake)
for family in ("chatglm", "chatglm2"):
    glmtune.load_model(fake_counts.GOLDEN / family, device="cpu")
with fake.world((8, 6)):
    for family in fake_counts.FAMILIES:
        token = fake_counts.count_decoding(fake, family, None, "fp16")
        batch, step = fake_counts.count_training(fake, family, "lora", "bf16")
        found = {"token": token, "batch": batch, "step": step}
        print(json.dumps({"family": family} | {key: [c.launches.total(), dict(c.waits), dict(c.places)]
            for key, c in found.items()}), flush=True)
    from glmtune.errors import TrainingError
    from glmtune.training import objective
    step_loss = objective.step_loss
    for bad in ([3], range(1, 100)):
        numbers = iter(range(1, 100))
        objective.step_loss = lambda *a, **k: step_loss(*a, **k) * (float("nan") if next(numbers) in bad else 1)
        try:
            fake_counts.count_training(fake, "chatglm2", "lora", "fp16", steps=11, logging=4)
        except TrainingError as error:
            print(error)
"""


def test_counts_on_a_device_that_is_not_there():
    """A micro-batch between logs waits for nothing but small copies of masks; a token for its id. In fp16 a step with a
    loss that is not finite is skipped, and a run without any other ends."""
    folder = find_asset("fake_cuda")
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler to build the simulated device with")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(REPOSITORY), str(folder)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"family')]
    assert [one["family"] for one in found] == ["chatglm", "chatglm2"]
    for one in found:
        launches, waits, places = one["token"]
        assert waits == {"tolist": 1}, places
        assert launches <= 3 * 25 + 45  # three layers; the rest are positions, head, sampling
        assert one["batch"][1].keys() <= {"tensor-from-python(H2D)"}, one["batch"][2]
        assert not one["step"][1], one["step"][2]
    skipped, *_, ended, hint = [line for line in result.stdout.splitlines() if "loss" in line or "Likely" in line]
    assert skipped == "The loss became nan at step 2 (rows 0, 1, 2): skipped; the loss scale of fp16 adapts."
    assert ended == "The loss became nan at step 9 (rows 0, 1, 2)."
    assert "fp16 overflowed: use bf16 or fp32" in hint
