"""Training and decoding do not wait for the device: what describes rows stays on the CPU, losses are read when logging."""

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
    checks = LossChecks(str)
    add_losses(checks, [1.0] * 6)
    add_losses(checks, [1.0, 1.0, float("nan"), 1.0, 1.0, float("inf")], step=2)
    (bad,) = checks.read()
    assert (bad.step, bad.rows) == (2, [1, 2])
    assert bad.value != bad.value
    assert checks.read() == []


def test_losses_are_read_at_once_on_a_cpu_and_when_they_are_many(monkeypatch):
    batch, losses_N = make_batch(), torch.ones(6)
    assert LossChecks(str).add(1, losses_N.mean(), losses_N, batch)
    on_device = torch.ones(6, device="meta")
    monkeypatch.setattr(loss_checks, "_MAX_UNREAD_TARGETS", 12)
    checks = LossChecks(str)
    assert [checks.add(1, on_device.mean(), on_device, batch) for _ in range(2)] == [False, True]


def test_losses_of_zero_are_counted_over_reads():
    checks, evaluation = LossChecks(str), LossChecks(str, stops_at_zero=False)
    for _ in range(7):
        add_losses(checks, [0.0] * 6)
        checks.read()
    add_losses(evaluation, *[[0.0] * 6] * 9)
    evaluation.read()
    add_losses(checks, [1.0] * 6, *[[0.0] * 6] * 8, step=9)
    with pytest.raises(TrainingError, match=r"exactly 0 at step 9, 8 batches in a row \(now rows \[0, 1, 2\]\)"):
        checks.read()


@pytest.mark.parametrize(
    ("skipped", "scale", "stops_after"),
    [([True] * 12, 4096.0, 10), ([True] * 9 + [False] + [True] * 9, 4096.0, None), ([False, True], 1.0, 2)],
)
def test_a_loss_scale_that_does_not_settle(skipped, scale, stops_after):
    check = ScaleCheck()
    stopped = [number for number, one in enumerate(skipped, 1) if check.is_hopeless(one, lambda: scale)]
    assert (stopped[0] if stopped else None) == stops_after


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
"""


def test_counts_on_a_device_that_is_not_there():
    """A micro-batch between logs waits for nothing but small copies of masks; a token for its id."""
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
