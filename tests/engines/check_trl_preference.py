"""Preference losses and their gradients against TRL's trainers, on models that both load."""

from __future__ import annotations

import json

import pytest
import torch
from engine_models import COUNT, DEMO, export, make_case, run_in
from safetensors.torch import load_file

import glmtune
from glmtune.config import RunConfig
from glmtune.config_parsing import build_dataclass
from glmtune.data.batches import BlockCollator, BlockDataset
from glmtune.data.cache import encode_sources
from glmtune.data.encoding import EncodingRules
from glmtune.data.sources import open_source
from glmtune.models.packed_attention import set_packed_attention
from glmtune.preference import PreferenceObjective
from glmtune.run_dir import RunDir
from glmtune.training.arguments import make_arguments
from glmtune.training.training_data import TrainingData

PAIRS = 6
CASES = {
    "dpo": ("dpo", {}, {"loss_type": ["sigmoid"]}),
    "dpo-beta": ("dpo", {"beta": 0.05}, {"loss_type": ["sigmoid"], "beta": 0.05}),
    "ipo": ("dpo", {"loss": "ipo", "beta": 0.2}, {"loss_type": ["ipo"], "beta": 0.2}),
    "hinge": ("dpo", {"loss": "hinge"}, {"loss_type": ["hinge"]}),
    "length-normalized": (
        "dpo",
        {"length_normalized": True, "beta": 1.0},
        {"loss_type": ["sigmoid_norm"], "beta": 1.0},
    ),
    # Of one pair, AOT is DPO with label smoothing; TRL's own sigmoid has none.
    "smoothing": ("dpo", {"label_smoothing": 0.2}, {"loss_type": ["aot"], "label_smoothing": 0.2}),
    # RPO: TRL had rpo_alpha, and has a sum of losses now.
    "rpo": ("dpo", {"sft_weight": 0.7}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}),
    "simpo": (
        "simpo",
        {"beta": 2.0, "margin": 0.8},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.8, "cpo_alpha": 0.0},
    ),
    "cpo-simpo": (
        "simpo",
        {"beta": 2.0, "margin": 0.8, "sft_weight": 0.5},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.8, "cpo_alpha": 0.5},
    ),
    "orpo": ("orpo", {"beta": 0.3}, {"beta": 0.3}),
}
"""Name to our stage and options, and TRL's options."""
_SINGLE = ("smoothing", "rpo", "cpo-simpo")
"""Cases in which TRL takes a mean over the tokens of a batch, or sorts it: one pair a batch."""


@pytest.mark.parametrize("name", [DEMO, "chatglm2", "glm4"])
def test_losses_and_gradients_are_trl_s(name, tmp_path, capsys):
    case = make_case(name, tmp_path / "base")
    export(case.folder, tmp_path / "reference", dtype="fp32")
    policy = glmtune.load_model(tmp_path / "reference", dtype=torch.float64, device="cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += (0.003 if name == DEMO else 0.02) * torch.randn(parameter.shape, generator=generator)
    policy.save_pretrained(tmp_path / "policy")
    glmtune.load_tokenizer(tmp_path / "reference").save_pretrained(tmp_path / "policy")

    rows = make_rows(case)
    (tmp_path / "pairs.json").write_text(json.dumps(rows), "utf-8")
    source = open_source(tmp_path / "pairs.json", preference="pairs")
    store = encode_sources([source], case.family, case.tokenizer, EncodingRules(512, 512)).rows
    job = {
        "policy": str(tmp_path / "policy"),
        "reference": str(tmp_path / "reference"),
        "folder": str(tmp_path),
        "rows": rows,
        "pairs": [split_pair(store[i], store[i + 1]) for i in range(0, len(store), 2)],
        "cases": [
            {"name": key, "stage": stage, "options": options, "batch": 1 if key in _SINGLE else 3}
            for key, (stage, _, options) in CASES.items()
        ],
    }
    result = run_in("trl", "trl_preference_worker.py", job, tmp_path / "out.json")

    for pair, row in zip(job["pairs"], result["rows"], strict=True):  # TRL renders what we render
        ends = {"chosen_ids": pair["better"], "rejected_ids": pair["worse"], "prompt_ids": pair["prompt"]}
        for key, ids in ends.items():
            assert row[key] == ids, key

    set_packed_attention(policy)
    reference = glmtune.load_model(tmp_path / "reference", dtype=torch.float64, device="cpu")
    set_packed_attention(reference)
    dataset = BlockDataset(store, [[*range(len(store))]])  # all pairs in one sequence
    data = TrainingData(dataset, dataset, BlockCollator(case.family), {})
    for key, (stage, options, _) in CASES.items():
        loss, gradients = compute_ours(policy, reference, data, stage, options, tmp_path)
        theirs = load_file(tmp_path / f"{key}.safetensors")
        assert gradients.keys() == theirs.keys()
        ours_N, theirs_N = (torch.cat([side[weight].flatten() for weight in theirs]) for side in (gradients, theirs))
        error = float((ours_N - theirs_N).norm() / theirs_N.norm())
        figures = f"loss {loss:.6f} off by {abs(loss - result['losses'][key]):.0e}"
        with capsys.disabled():
            print(f"{name} {key}: {figures}, gradient of norm {float(theirs_N.norm()):.1f} off by {error:.0e} of it")
        # TRL sums log-probabilities in fp32, even of a model in fp64.
        assert abs(loss - result["losses"][key]) < 1e-6 * max(1.0, abs(loss))
        assert error < 1e-6
        assert theirs_N.norm() > 0.1


def make_rows(case):
    """Pairs of conversations, with turns before and system messages, as TRL's rows of messages."""
    answers = ["白色。", "不", "裙子很好", "好", "hello", "上衣"]
    talks = [talk for talk in case.conversations[:: COUNT // PAIRS] if talk[0]["role"] == "user"][:PAIRS]
    return [
        {
            "prompt": talk,
            "chosen": [{"role": "assistant", "content": answers[i % PAIRS]}],
            "rejected": [{"role": "assistant", "content": answers[(i + 1 + i % 2) % PAIRS]}],
        }
        for i, talk in enumerate(talks)
    ]


def split_pair(better, worse):
    """Token ids of prompt and answers; an answer starts at its first target."""
    ids = [[int(token) for token in row.input_ids] for row in (better, worse)]
    start = next(i for i, label in enumerate(better.labels) if label != -100)
    assert ids[0][:start] == ids[1][:start]
    return {"prompt": ids[0][:start], "better": ids[0][start:], "worse": ids[1][start:]}


def compute_ours(policy, reference, data, stage, options, folder):
    """Our loss and gradients, of one packed sequence."""
    values = {"stage": stage, "model": "m", "data": "d", "preference": options}
    objective = PreferenceObjective(build_dataclass(RunConfig, values, "check"))
    training = {"report_to": "none", "use_cpu": True}
    arguments = make_arguments(RunConfig(training=training), RunDir(folder / "run"), torch.float32)
    if objective.needs_reference:
        objective.compute_reference(reference, data, arguments)
    policy.zero_grad()
    loss = objective.compute_losses(policy, data.collate([data.train[0]]), None).mean()
    loss.backward()
    return loss.item(), {name: weight.grad for name, weight in policy.named_parameters()}
