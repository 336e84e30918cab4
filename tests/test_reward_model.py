"""Reward models: loss and rewards against plain formulas, saving and loading with every method, score, export."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import glmtune
from conftest import REPOSITORY
from glmtune.config import PreferenceConfig, RunConfig
from glmtune.config_parsing import build_dataclass
from glmtune.data.batches import BlockCollator
from glmtune.data.encoding import EncodedRow
from glmtune.data.sources import open_source
from glmtune.errors import DataError, RunError
from glmtune.evaluation.calibration import compute_auc, compute_calibration, compute_wilson_interval
from glmtune.export import reward_export
from glmtune.export.shards import TensorPiece
from glmtune.methods.value_head import attach_value_head, make_value_head
from glmtune.models.packed_attention import set_packed_attention
from glmtune.preference import load_reward_model, make_objective
from glmtune.preference.losses import compute_reward_losses
from glmtune.training.run import train
from tiny import FAMILIES

BETTER, WORSE = "我很好，谢谢", "走开"


def _write(folder, rows, name="pairs.json"):
    path = folder / name
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


def _pairs(count, **more):
    return [{"prompt": f"你好吗{n}", "chosen": BETTER, "rejected": WORSE, **more} for n in range(count)]


def _conversation(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize("center", [0.0, 0.05])
def test_losses_and_gradients_are_those_of_bradley_and_terry(center):
    better, worse, margins = [0.5, -1.0], [-0.25, 0.75], [0.0, 0.6]
    rewards_2P = torch.tensor([better, worse], dtype=torch.float64, requires_grad=True)
    options = PreferenceConfig(center_rewards=center)
    losses_P = compute_reward_losses(*rewards_2P, torch.tensor(margins, dtype=torch.float64), options)
    (gradient_2P,) = torch.autograd.grad(losses_P.sum(), rewards_2P)

    def compute(one, other, margin):
        return -math.log(1 / (1 + math.exp(-(one - other - margin)))) + center * (one + other) ** 2

    for pair in range(2):
        values = [better[pair], worse[pair]]
        assert losses_P[pair].item() == pytest.approx(compute(*values, margins[pair]), abs=1e-9)
        for side in range(2):
            ends = [
                compute(*(v + s * 1e-5 * (i == side) for i, v in enumerate(values)), margins[pair]) for s in (1, -1)
            ]
            assert float(gradient_2P[side, pair]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_have_the_rewards_of_the_rows_alone(family, tiny):
    """Losses and gradients of all pairs in one sequence, against transformers' own forward pass of each row."""
    base = tiny(family)
    kind, tokenizer = glmtune.detect_family(base), glmtune.load_tokenizer(base)
    rows = []
    for number in range(4):
        row = kind.encode(
            _conversation("衣服" * (1 + number // 2), (BETTER, WORSE)[number % 2] * (1 + number)), tokenizer
        )
        rows.append(EncodedRow(row.input_ids, row.labels, row.context, number, "", 0.3 * (number // 2)))
    packed, plain = (glmtune.load_model(base, dtype=torch.float32, device="cpu").requires_grad_(True) for _ in range(2))
    set_packed_attention(packed)
    head = make_value_head(packed)
    attach_value_head(packed, head)
    objective = make_objective(build_dataclass(RunConfig, {"stage": "rm", "model": "m", "data": "d"}, "test"))
    losses_P = objective.compute_losses(packed, BlockCollator(kind)([list(enumerate(rows))]), None)

    weight = head.weight.detach().clone().requires_grad_()
    rewards = []
    for row in rows:
        ids = torch.tensor([list(row.input_ids)])
        hidden = plain(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True).hidden_states[-1]
        rewards.append(hidden[0, -1] @ weight[0])
    expected = [-torch.log(torch.sigmoid(rewards[p] - rewards[p + 1] - rows[p].value)) for p in (0, 2)]
    assert losses_P.tolist() == pytest.approx([one.item() for one in expected], abs=1e-6)
    names = [name for name, _ in plain.named_parameters() if "layers.0" in name]
    ours = [head.weight, *(dict(packed.named_parameters())[name] for name in names)]
    theirs = [weight, *(dict(plain.named_parameters())[name] for name in names)]
    for name, one, other in zip(
        ["head", *names],
        torch.autograd.grad(losses_P.sum(), ours),
        torch.autograd.grad(sum(expected), theirs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-4, msg=name)


def test_margins_are_read(tmp_path):
    rows = [*_pairs(1, margin=0.5), *_pairs(1, margin="2"), *_pairs(1)]
    source = open_source(_write(tmp_path, rows), preference="pairs")
    assert [pair.margin for pair in source] == [0.5, 2.0, 0.0]
    assert not source.unread_keys.where
    named = open_source(_write(tmp_path, _pairs(1, gap=3)), {"margin": "gap"}, preference="pairs")
    assert next(iter(named)).margin == 3.0
    with pytest.raises(DataError, match="'margin' must be a number"):
        list(open_source(_write(tmp_path, _pairs(1, margin="much")), preference="pairs"))


RATES = {"lora": 2e-2, "ptuning": 5e-2, "freeze": 5e-3, "full": 2e-3}
METHODS = dict(zip(FAMILIES, ("ptuning", "lora", "full", "freeze"), strict=True))


def _train(base, folder, method, **more):
    """A reward model of eight steps on pairs, one of which is held out."""
    tree = {
        "model": str(base),
        "stage": "rm",
        "method": method,
        "data": {"train": str(_write(folder, _pairs(10, margin=0.1))), "eval_rows": 1, "packing": False},
        "freeze": {"trainable_layers": 1},
        "output": str(folder / "run"),
        **more,
    }
    tree["training"] = {
        "learning_rate": RATES[method],
        "max_steps": 8,
        "logging_steps": 1,
        "save_steps": 4,
        "gradient_accumulation_steps": 3,
        "report_to": "none",
        **more.get("training", {}),
    }
    config = build_dataclass(RunConfig, tree, "test")
    return train(config, objective=make_objective(config)).run


@pytest.fixture(scope="module")
def reward_run(tiny, tmp_path_factory):
    """`reward_run(family)`: a trained reward model, with a method of its own for each generation."""
    runs = {}

    def get(family, method=None):
        key = (family, method or METHODS[family])
        if key not in runs:
            with pytest.MonkeyPatch.context() as patch:
                folder = tmp_path_factory.mktemp("reward")
                patch.setenv("GLMTUNE_CACHE", str(folder / "cache"))
                runs[key] = _train(tiny(family), folder, key[1])
        return runs[key]

    return get


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_saved_gives_the_rewards_of_the_training(family, reward_run):
    run = reward_run(family)
    entries = run.read_metrics()
    steps = [entry for entry in entries if "loss" in entry]
    assert steps[-1]["accuracy"] == 1
    assert steps[-1]["margin"] > steps[0]["margin"] + 0.3
    assert steps[-1]["mean_reward"] == pytest.approx((steps[-1]["better_reward"] + steps[-1]["worse_reward"]) / 2)
    last = [entry for entry in entries if "eval_margin" in entry][-1]

    model = load_reward_model(run.root)
    held_out = {f"你好吗{n}" for n in range(10)}
    rewards = {q: model.score_rows([_conversation(q, a) for a in (BETTER, WORSE)]) for q in sorted(held_out)}
    distances = [
        abs(one[0] - last["eval_better_reward"]) + abs(one[1] - last["eval_worse_reward"]) for one in rewards.values()
    ]
    assert min(distances) < 1e-5
    encoded = model.family.encode(_conversation("你好吗0", BETTER), model.tokenizer)
    ids, sequence, alone = model.score_rows([encoded.input_ids, encoded, _conversation("你好吗0", BETTER)])
    assert ids == pytest.approx(alone, abs=1e-5) == pytest.approx(sequence, abs=1e-5)
    folder = run.adapter if run.adapter.is_dir() else run.model
    assert set(load_file(folder / "value_head.safetensors")) == {"score.weight"}


def test_a_resumed_run_equals_an_uninterrupted_one(tiny, tmp_path):
    weights = []
    for name in ("whole", "resumed"):
        folder = tmp_path / name
        folder.mkdir()
        steps = {"max_steps": 4 if name == "whole" else 2, "save_steps": 2, "lr_scheduler_type": "constant"}
        run = _train(tiny("chatglm2"), folder, "lora", training=steps)
        if name == "resumed":
            config = glmtune.config.load_config(run.config, ["training.max_steps=4"])
            train(config, resume=True, objective=make_objective(config))
        weights.append({**load_file(run.adapter / "adapter_model.safetensors")})
        weights[-1] |= load_file(run.adapter / "value_head.safetensors")
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_training_starts_from_another_reward_model_or_adapter(tiny, tmp_path, reward_run):
    """The value head of a reward model is kept; an adapter without one gets a new one."""
    earlier = reward_run("chatglm2").adapter
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in earlier.iterdir():
        if path.name != "value_head.safetensors":
            (plain / path.name).write_bytes(path.read_bytes())
    changes = {}
    for name, adapter in (("kept", earlier), ("new", plain)):
        folder = tmp_path / name
        folder.mkdir()
        options = {"max_steps": 1, "learning_rate": 1e-6, "seed": 7}
        run = _train(tiny("chatglm2"), folder, "lora", adapter=str(adapter), training=options)
        heads = [load_file(place / "value_head.safetensors")["score.weight"] for place in (earlier, run.adapter)]
        changes[name] = (heads[1] - heads[0]).abs().max().item()
    assert 0 < changes["kept"] < 1e-5
    assert changes["new"] > 0.1


@pytest.mark.parametrize(
    "words", [["chat", "RUN", "--prompt", "x"], ["eval", "RUN", "--data", "DATA"], ["bench", "RUN"], ["serve", "RUN"]]
)
def test_other_commands_say_what_it_is(words, tiny, reward_run, tmp_path, glmtune_command):
    run = reward_run("chatglm2")
    data = _write(tmp_path, [{"prompt": "a", "response": "b"}], "data.json")
    places = {"RUN": run.root, "DATA": data}
    result = glmtune_command(*(places.get(word, word) for word in words))
    assert result.code == 1
    assert f"glmtune score {run.adapter} --data FILE" in result.err


def test_load_model_says_what_it_is(tiny, reward_run):
    with pytest.raises(RunError, match="a reward model"):
        glmtune.load_model(reward_run("chatglm2").root)
    with pytest.raises(RunError, match="a reward model"):
        glmtune.load_model(tiny("chatglm2"), adapter=reward_run("chatglm2").root)


@pytest.mark.parametrize(("family", "method"), [("chatglm2", "lora"), ("chatglm3", "full"), ("glm4", "freeze")])
def test_an_exported_model_gives_the_same_rewards_in_transformers(
    family, method, reward_run, tmp_path, glmtune_command
):
    run = reward_run(family, method)
    result = glmtune_command("export", run.root, tmp_path / "out")
    assert result.code == 0, result.err
    assert "AutoModelForSequenceClassification" in result.out
    model = load_reward_model(run.root)
    conversations = [_conversation("你好吗1", BETTER), _conversation("你好", WORSE * 4)]
    rewards = model.score_rows(conversations)
    rows = [model.family.encode(one, model.tokenizer).input_ids for one in conversations]
    written = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert type(written).__name__ == "GlmForSequenceClassification"
    assert written.config.num_labels == 1
    padding = written.config.pad_token_id
    assert padding not in {row[-1] for row in rows}
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows])
    logits = written(input_ids=ids, attention_mask=(ids != padding).long()).logits
    assert logits[:, 0].tolist() == pytest.approx(rewards, abs=1e-5)
    assert load_reward_model(tmp_path / "out").score_rows(conversations) == pytest.approx(rewards, abs=1e-5)
    chat = glmtune_command("chat", tmp_path / "out", "--prompt", "x")
    assert chat.code == 1
    assert "a reward model" in chat.err


def test_an_export_in_16_bits_is_compared_with_its_roundings(tmp_path, monkeypatch, glmtune_command):
    """transformers rounds the value head and the rewards, which shows at the width of the demo's base; other weights
    than those in memory are an error all the same."""
    pairs = tmp_path / "pairs.json"
    rows = [
        {"prompt": f"类型#裙*颜色#{colour}", "chosen": f"{colour}的裙子。", "rejected": "上衣。"}
        for colour in "红蓝白黑"
    ]
    pairs.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    run = tmp_path / "run"
    arguments = ["--model", REPOSITORY / "src/glmtune/demo/base", "--data", pairs, "--stage", "rm", "--output", run]
    result = glmtune_command("train", *arguments, "--set", "training.max_steps=1", "--set", "data.eval_fraction=0")
    assert result.code == 0, result.err
    result = glmtune_command("export", run, tmp_path / "out", "--dtype", "fp16")
    assert result.code == 0, result.err
    monkeypatch.setattr(
        reward_export, "TensorPiece", lambda name, parts: TensorPiece(name, tuple(part * 1.05 for part in parts))
    )
    result = glmtune_command("export", run, tmp_path / "other", "--dtype", "fp16")
    assert result.code == 1
    assert "Written, the reward model gives other rewards" in result.err


def test_the_embedding_of_the_end_token_is_trained(tiny, reward_run):
    """A reward is read there. In GLM-4 it is the padding token, whose embedding transformers gives no gradient."""
    run = reward_run("glm4", "full")
    tokenizer = glmtune.load_tokenizer(tiny("glm4"))
    assert tokenizer.pad_token == "<|endoftext|>"
    weights = [
        load_reward_model(run.root).model.get_input_embeddings().weight,
        glmtune.load_model(tiny("glm4"), dtype="fp32", device="cpu").get_input_embeddings().weight,
    ]
    changes = (weights[0].float() - weights[1]).abs().amax(1)
    assert changes[tokenizer.pad_token_id] > 1e-3


@pytest.mark.parametrize("stage", ["dpo", "sft"])
def test_what_another_stage_leaves_out_is_said(stage, tiny, reward_run, tmp_path, glmtune_command):
    """Margins, and the value head of an adapter to start from."""
    rows = _pairs(3, margin=1.0) if stage == "dpo" else [{"prompt": str(n), "response": BETTER} for n in range(3)]
    settings = [f"stage={stage}", "training.max_steps=1", "training.report_to=none"]
    settings += [f"adapter={reward_run('chatglm2').root}"] if stage == "sft" else []
    result = glmtune_command(
        *("train", "--model", tiny("chatglm2"), "--data", _write(tmp_path, rows), "--output", tmp_path / "run"),
        *(word for setting in settings for word in ("--set", setting)),
    )
    assert result.code == 0, result.err
    expected = {"dpo": "margins, which have no effect on stage dpo", "sft": "its value head is left out"}
    assert expected[stage] in result.out + result.err


@pytest.mark.parametrize(
    ("family", "method", "options", "problem"),
    [
        ("chatglm", "lora", [], "transformers has no sequence classification for ChatGLM-6B"),
        ("chatglm", "ptuning", [], "P-Tuning prefix"),
        ("chatglm2", "lora", ["--format", "official"], "--format official --bits 16 has no place for its value head"),
        ("chatglm2", "lora", ["--bits", "8"], "no place for its value head"),
        ("chatglm2", "lora", ["--adapter-only"], "--adapter-only has no place for its value head"),
    ],
)
def test_exports_without_a_place_for_the_value_head(
    family, method, options, problem, reward_run, tmp_path, glmtune_command
):
    result = glmtune_command("export", reward_run(family, method).root, tmp_path / "out", *options)
    assert result.code == 1
    assert problem in result.err
    assert not (tmp_path / "out").exists()


def test_score_of_pairs(reward_run, tmp_path, glmtune_command):
    run = reward_run("chatglm2")
    wrong = {"prompt": "你好吗3", "chosen": WORSE, "rejected": BETTER}
    data = _write(tmp_path, [*_pairs(5), wrong], "held-out.json")
    result = glmtune_command("score", run.root, "--data", data)
    assert result.code == 0, result.err
    assert "83.3 %" in result.out
    assert "Wrong by" in result.out
    folder = run.root / "score" / "held-out"
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    records = [json.loads(line) for line in (folder / "scores.jsonl").read_text("utf-8").splitlines()]
    margins = [record["better"] - record["worse"] for record in records]
    assert metrics["accuracy"] == pytest.approx(5 / 6)
    assert metrics["mean_margin"] == pytest.approx(sum(margins) / 6)
    assert metrics["brier"] == pytest.approx(sum((1 - 1 / (1 + math.exp(-m))) ** 2 for m in margins) / 6)
    assert sum(one["pairs"] for one in metrics["bins"]) == 6
    assert metrics["longer_is_better"] == pytest.approx(5 / 6)
    assert metrics["longer_is_preferred"] == 1
    assert (folder / "calibration.png").read_bytes()[:4] == b"\x89PNG"
    assert records[5]["worse_answer"] == BETTER
    again = glmtune_command("score", run.root, "--data", data, "--batch-size", 1)
    assert again.code == 0, again.err
    assert json.loads((folder / "metrics.json").read_text("utf-8"))["accuracy"] == pytest.approx(5 / 6)


def test_score_of_labelled_and_of_plain_rows(reward_run, tmp_path, glmtune_command):
    run = reward_run("chatglm2")
    rows = [{"prompt": f"你好吗{n}", "completion": (WORSE, BETTER)[n % 2], "label": bool(n % 2)} for n in range(4)]
    assert glmtune_command("score", run.root, "--data", _write(tmp_path, rows, "labels.json")).code == 0
    metrics = json.loads((run.root / "score" / "labels" / "metrics.json").read_text("utf-8"))
    assert (metrics["kind"], metrics["auc"], metrics["good_rows"]) == ("labels", 1.0, 2)
    plain = [{"prompt": row["prompt"], "response": row["completion"]} for row in rows]
    output = tmp_path / "out"
    result = glmtune_command("score", run.adapter, "--data", _write(tmp_path, plain, "plain.json"), "--output", output)
    assert result.code == 0, result.err
    records = [json.loads(line) for line in (output / "scores.jsonl").read_text("utf-8").splitlines()]
    expected = load_reward_model(run.root).score_rows([_conversation(row["prompt"], row["response"]) for row in plain])
    assert [record["reward"] for record in records] == pytest.approx(expected, abs=1e-5)


def test_score_of_something_else(tiny, tmp_path, glmtune_command):
    data = _write(tmp_path, _pairs(2))
    result = glmtune_command("score", tiny("chatglm2"), "--data", data)
    assert result.code == 1
    assert "no reward model" in result.err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("x")
    result = glmtune_command("score", tiny("chatglm2"), "--data", data, "--output", tmp_path / "full")
    assert result.code == 1
    assert "not empty" in result.err


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["lora.modules_to_save=[lm_head]"], "a reward model does not use"),
        (["data.new_tokens=[<one>]"], "data.new_tokens"),
        (["training.label_smoothing_factor=0.1"], "training.label_smoothing_factor"),
    ],
)
def test_settings_that_train_the_head_are_refused(options, problem, tiny, tmp_path, glmtune_command):
    sets = [word for option in ["stage=rm", *options] for word in ("--set", option)]
    words = ["train", "--model", tiny("chatglm2"), "--data", _write(tmp_path, _pairs(4)), "--output", tmp_path / "run"]
    result = glmtune_command(*words, *sets)
    assert result.code == 1
    assert problem in result.err
    assert not (tmp_path / "run").exists()


def test_calibration_against_numbers_by_hand():
    margins = [0.0, 0.1, -0.1, 3.0, -3.0, 3.0, 3.0]
    result = compute_calibration(margins)
    assert result.accuracy == pytest.approx(4.5 / 7)
    low, high = 1 / (1 + math.exp(-0.1)), 1 / (1 + math.exp(-3.0))
    first, last = result.bins[0], result.bins[-1]
    assert (first.pairs, last.pairs) == (3, 4)
    assert first.confidence == pytest.approx((0.5 + 2 * low) / 3)
    assert (first.accuracy, last.accuracy) == (0.5, 0.75)
    ece = 3 / 7 * abs(first.confidence - 0.5) + 4 / 7 * abs(high - 0.75)
    assert result.ece == pytest.approx(ece)
    # Of 20 heads in 20 throws: Wilson's interval, from his formula.
    assert compute_wilson_interval(1.0, 20) == pytest.approx((20 / (20 + 1.96**2), 1.0))
    assert compute_auc([1.0, 2.0, 2.0], [0.0, 2.0]) == pytest.approx((1 + 0 + 1 + 0.5 + 1 + 0.5) / 6)
