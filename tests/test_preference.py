"""Preference tuning: how pairs are read, their losses against plain formulas, and runs through the command."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import glmtune
from glmtune.config import PreferenceConfig, RunConfig
from glmtune.config_parsing import build_dataclass
from glmtune.data.batches import BlockCollator, BlockDataset
from glmtune.data.encoding import EncodingCounts, EncodingRules, encode_conversations
from glmtune.data.sources import open_source
from glmtune.errors import DataError
from glmtune.models.packed_attention import set_packed_attention
from glmtune.preference import make_objective
from glmtune.preference.losses import AnswerScores, compute_pair_losses
from glmtune.preference.pair_objective import PreferenceObjective
from glmtune.run_dir import RunDir
from glmtune.training.arguments import make_arguments
from glmtune.training.loss import step_loss
from glmtune.training.training_data import TrainingData
from tiny import FAMILIES

QUESTION, BETTER, WORSE = "你好吗", "我很好，谢谢", "走开"


def _write(folder, rows):
    path = folder / "pairs.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


def _read(folder, *rows):
    return list(open_source(_write(folder, list(rows)), preference="pairs"))


def _user(text):
    return {"role": "user", "content": text}


def _assistant(text):
    return {"role": "assistant", "content": text}


SHAPES = {
    "texts": {"prompt": QUESTION, "chosen": BETTER, "rejected": WORSE},
    "alpaca": {"instruction": QUESTION, "input": "", "chosen": BETTER, "rejected": WORSE},
    "list of answers": {"instruction": QUESTION, "input": "", "output": [BETTER, WORSE]},
    "messages": {"prompt": [_user(QUESTION)], "chosen": [_assistant(BETTER)], "rejected": [_assistant(WORSE)]},
    "whole conversations": {
        "chosen": [_user(QUESTION), _assistant(BETTER)],
        "rejected": [_user(QUESTION), _assistant(WORSE)],
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": QUESTION}],
        "chosen": {"from": "gpt", "value": BETTER},
        "rejected": {"from": "gpt", "value": WORSE},
    },
    "one more answer": {"query": QUESTION, "response": BETTER, "rejected_response": WORSE},
    "messages and one more answer": {"messages": [_user(QUESTION), _assistant(BETTER)], "rejected_response": WORSE},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_pairs_of_every_shape(shape, tmp_path):
    (pair,) = _read(tmp_path, SHAPES[shape])
    for conversation, answer in ((pair, BETTER), (pair.rejected, WORSE)):
        assert [(m["role"], m["content"]) for m in conversation.messages] == [("user", QUESTION), ("assistant", answer)]


def test_only_what_differs_is_compared(tmp_path):
    history = [_user("早"), _assistant("早上好"), _user(QUESTION)]
    row = {"chosen": [*history, _assistant(BETTER)], "rejected": [*history, _assistant(WORSE)]}
    (pair,) = _read(tmp_path, row)
    for conversation in (pair, pair.rejected):
        assert [m.get("loss") for m in conversation.messages if m["role"] == "assistant"] == [False, None]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": QUESTION, "response": BETTER}, "no worse answer"),
        ({"prompt": QUESTION, "response": BETTER, "label": True}, "no worse answer"),
        ({"prompt": QUESTION, "chosen": BETTER, "rejected": ""}, "no worse answer"),
    ],
)
def test_rows_without_a_pair_are_refused(row, problem, tmp_path):
    with pytest.raises(DataError, match=r"pairs\.json:\d.*" + problem):
        _read(tmp_path, SHAPES["texts"], row)


def test_pairs_of_the_same_answer_are_skipped_and_counted(tmp_path):
    same = {"prompt": QUESTION, "chosen": BETTER, "rejected": BETTER}
    source = open_source(_write(tmp_path, [SHAPES["texts"], same]), preference="pairs")
    assert len(list(source)) == 1
    assert source.invalid_line_count == 1
    assert "are the same" in source.invalid_lines[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_both_sides_keep_the_same_prompt(family, tiny, tmp_path):
    """With one limit for prompt and answer together, the longer answer decides."""
    long = {"prompt": "衣服" * 40, "chosen": "好" * 30, "rejected": "坏"}
    rules = EncodingRules(512, 512, max_length=60)
    base = tiny(family)
    counts = EncodingCounts()
    encode = [_read(tmp_path, long), glmtune.detect_family(base), glmtune.load_tokenizer(base), rules, counts]
    better, worse = encode_conversations(*encode)
    starts = [next(i for i, label in enumerate(row.labels) if label != -100) for row in (better, worse)]
    assert starts[0] == starts[1]
    assert list(better.input_ids[: starts[0]]) == list(worse.input_ids[: starts[0]])
    assert len(better.input_ids) <= 60
    assert (counts.conversations, counts.rows, counts.prompts_cut) == (1, 2, 2)


OPTIONS = {
    "dpo": ("dpo", {}),
    "dpo with smoothing": ("dpo", {"label_smoothing": 0.2}),
    "dpo by length, with sft": ("dpo", {"length_normalized": True, "sft_weight": 0.7}),
    "ipo": ("dpo", {"loss": "ipo"}),
    "hinge": ("dpo", {"loss": "hinge", "beta": 0.4}),
    "orpo": ("orpo", {}),
    "simpo": ("simpo", {"beta": 2.0, "margin": 1.5, "sft_weight": 0.1}),
}


def _compute_plain_loss(stage, options, sums, lengths, references):
    """The loss of one pair in Python numbers, as the papers write it: (better, worse) each."""
    beta = options.beta
    means = [total / length for total, length in zip(sums, lengths, strict=True)]
    if stage == "dpo":
        ratios = [total - reference for total, reference in zip(sums, references, strict=True)]
        if options.length_normalized or options.loss == "ipo":
            ratios = [ratio / length for ratio, length in zip(ratios, lengths, strict=True)]
        difference = ratios[0] - ratios[1]
        if options.loss == "ipo":
            loss = (difference - 1 / (2 * beta)) ** 2
        elif options.loss == "hinge":
            loss = max(0.0, 1 - beta * difference)
        else:
            win = 1 / (1 + math.exp(-beta * difference))
            loss = -(1 - options.label_smoothing) * math.log(win) - options.label_smoothing * math.log(1 - win)
    elif stage == "orpo":
        odds = [math.exp(mean) / (1 - math.exp(mean)) for mean in means]
        loss = -means[0] - beta * math.log(1 / (1 + odds[1] / odds[0]))
    else:
        loss = -math.log(1 / (1 + math.exp(-(beta * (means[0] - means[1]) - options.margin))))
    return loss - options.sft_weight * means[0]


@pytest.mark.parametrize(
    ("stage", "options", "stops"),
    [
        ("dpo", {}, True),
        ("dpo", {"loss": "hinge"}, False),  # pairs that differ enough have a loss of 0
        ("kto", {}, True),
        ("kto", {"undesirable_weight": 0}, False),  # bad answers have a loss of 0
    ],
)
def test_losses_of_zero_end_a_run_where_they_mean_that_nothing_is_learnt(stage, options, stops):
    config = build_dataclass(RunConfig, {"stage": stage, "model": "m", "data": "d", "preference": options}, "test")
    assert make_objective(config).stops_at_zero_loss is stops


def test_orpo_of_a_certain_answer_is_finite():
    """fp32 gives a short answer of a model that is sure a probability of 1, or of a little more."""
    sums_2P = torch.tensor([[0.0, 1e-8], [-9.0, 0.0]], dtype=torch.float64, requires_grad=True)
    better, worse = (AnswerScores(sums_P, torch.ones(2, dtype=torch.float64)) for sums_P in sums_2P)
    losses_P = compute_pair_losses("orpo", better, worse, PreferenceConfig()).losses_P
    (gradient_2P,) = torch.autograd.grad(losses_P.sum(), sums_2P)
    assert bool(losses_P.isfinite().all())
    assert bool(gradient_2P.isfinite().all())


@pytest.mark.parametrize("name", OPTIONS)
def test_losses_and_gradients_are_those_of_the_papers(name):
    stage, values = OPTIONS[name]
    options = PreferenceConfig(**{"beta": 0.1, **values})
    sums, lengths, references = [[-9.0, -14.0], [-31.0, -4.5]], [[5, 7], [12, 3]], [[-11.0, -13.0], [-29.5, -5.0]]
    sums_2P = torch.tensor(sums, dtype=torch.float64).T.requires_grad_()
    sides = [
        AnswerScores(sums_2P[side], *(torch.tensor(x, dtype=torch.float64).T[side] for x in (lengths, references)))
        for side in (0, 1)
    ]
    result = compute_pair_losses(stage, *sides, options)
    (gradient_2P,) = torch.autograd.grad(result.losses_P.sum(), sums_2P)
    step = 1e-5
    for pair in range(2):
        facts = (lengths[pair], references[pair])
        expected = _compute_plain_loss(stage, options, sums[pair], *facts)
        assert result.losses_P[pair].item() == pytest.approx(expected, abs=1e-9)
        for side in range(2):
            ends = []
            for sign in (1, -1):
                moved = list(sums[pair])
                moved[side] += sign * step
                ends.append(_compute_plain_loss(stage, options, moved, *facts))
            assert float(gradient_2P[side, pair]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-6)


def _make_data(base, tmp_path, blocks):
    """The pairs of four rows as training data, in blocks of rows."""
    from glmtune.data.cache import encode_sources

    rows = [
        {"prompt": QUESTION * n, "chosen": BETTER * n, "rejected": WORSE * (5 - n), "system": "简短" * (n % 2)}
        for n in range(1, 5)
    ]
    source = open_source(_write(tmp_path, rows), preference="pairs")
    family = glmtune.detect_family(base)
    store = encode_sources([source], family, glmtune.load_tokenizer(base), EncodingRules(64, 64)).rows
    dataset = BlockDataset(store, blocks)
    return TrainingData(dataset, dataset, BlockCollator(family), {})


def _make_arguments(tmp_path, **training):
    values = {"report_to": "none", "use_cpu": True, "per_device_eval_batch_size": 3, **training}
    return make_arguments(RunConfig(training=values), RunDir(tmp_path / "run"), torch.float32)


def _sum_logps(model, family, row):
    """The log-probability of a row's answer, from the logits of the row alone."""
    batch = BlockCollator(family)([[(0, row)]])
    losses_N = step_loss(model, batch)
    return -losses_N.double().sum()


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_pairs_have_the_losses_of_the_pairs_alone(family, tiny, tmp_path):
    """Of a model that has moved away from its reference: losses and gradients, all pairs in one sequence."""
    base = tiny(family)
    data = _make_data(base, tmp_path, [[0, 1, 2, 3], [4, 5, 6, 7]])
    model = glmtune.load_model(base, dtype=torch.float32, device="cpu")
    set_packed_attention(model)
    config = build_dataclass(RunConfig, {"stage": "dpo", "model": "m", "data": "d"}, "test")
    objective = PreferenceObjective(config)
    objective.compute_reference(model, data, _make_arguments(tmp_path))
    references = [_sum_logps(model, data.collate.family, data.train.rows[i]).item() for i in range(8)]

    head = model.get_output_embeddings().weight
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        head.add_(torch.randn(head.shape, generator=generator) * 0.05)
    head.requires_grad_()
    losses_P = objective.compute_losses(model, data.collate([data.train[0], data.train[1]]), None)
    (gradient,) = torch.autograd.grad(losses_P.sum(), head)

    total = torch.zeros((), dtype=torch.float64)
    for pair in range(4):
        sums = [_sum_logps(model, data.collate.family, data.train.rows[2 * pair + side]) for side in (0, 1)]
        ratios = [total_logp - references[2 * pair + side] for side, total_logp in enumerate(sums)]
        loss = -F.logsigmoid(0.1 * (ratios[0] - ratios[1]))
        assert losses_P[pair].item() == pytest.approx(loss.item(), abs=1e-6)
        assert abs(loss.item() - math.log(2)) > 1e-4
        total = total + loss
    (expected,) = torch.autograd.grad(total, head)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)
    sums = objective.pop_metrics(is_evaluation=True)
    assert sums[:, 1].tolist() == [4] * 6


def _train(command, base, data, output, *options):
    settings = ["training.report_to=none", "training.logging_steps=1", "training.save_steps=2", *options]
    sets = [word for setting in settings for word in ("--set", setting)]
    return command("train", "--model", base, "--data", data, "--output", output, *sets)


@pytest.fixture
def pairs(tmp_path):
    rows = [{"prompt": f"{QUESTION}{n}", "chosen": BETTER, "rejected": WORSE} for n in range(12)]
    return _write(tmp_path, rows)


@pytest.mark.parametrize(
    ("family", "stage", "method"),
    [
        ("chatglm", "dpo", "ptuning"),
        ("chatglm2", "simpo", "lora"),
        ("chatglm3", "orpo", "full"),
        ("glm4", "dpo", "lora"),
    ],
)
def test_runs_learn_the_preference(family, stage, method, tiny, pairs, tmp_path, glmtune_command):
    output = tmp_path / "run"
    rate = {"full": 2e-3, "lora": 2e-2, "ptuning": 5e-2}[method]
    options = [f"stage={stage}", f"method={method}", "data.packing=false", f"training.learning_rate={rate}"]
    options += ["training.max_steps=8", "training.gradient_accumulation_steps=3"]
    result = _train(glmtune_command, tiny(family), pairs, output, *options)
    assert result.code == 0, result.err
    assert "11 training and 1 evaluation pair" in result.out
    entries = [json.loads(line) for line in (output / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps = [entry for entry in entries if "loss" in entry]
    if stage == "dpo" and method == "lora":
        # Dropout alone tells the adapter, which is still zero, from its reference: it has no effect on zero.
        assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps[-1]["margin"] > steps[0]["margin"] + 0.01
    assert steps[-1]["accuracy"] == 1
    assert any("eval_accuracy" in entry for entry in entries)


def test_a_resumed_run_equals_an_uninterrupted_one(tiny, pairs, tmp_path, glmtune_command):
    options = ["stage=dpo", "data.packing=false", "training.learning_rate=1e-2"]
    for name, steps in (("whole", 4), ("resumed", 2)):
        # The schedule of a constant rate does not depend on the number of steps.
        settings = [*options, f"training.max_steps={steps}", "training.lr_scheduler_type=constant"]
        assert _train(glmtune_command, tiny("chatglm3"), pairs, tmp_path / name, *settings).code == 0
    resumed = glmtune_command("train", "--resume", "--output", tmp_path / "resumed", "--set", "training.max_steps=4")
    assert resumed.code == 0, resumed.err
    whole, ours = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "resumed")
    )
    assert all(torch.equal(whole[key], ours[key]) for key in whole)
    lines = [(tmp_path / name / "metrics.jsonl").read_text("utf-8").splitlines() for name in ("whole", "resumed")]
    last = [[json.loads(line) for line in each][-2]["margin"] for each in lines]
    assert last[0] == last[1]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["stage=orpo", "preference.loss=ipo"], "preference.loss has no effect with stage orpo"),
        (["preference.beta=0.5"], "no effect with stage sft"),
        (["stage=dpo", "data.preference=chosen"], "stage dpo needs both"),
        (["stage=dpo", "training.label_smoothing_factor=0.1"], "preference.label_smoothing"),
        (["stage=dpo", "preference.beta=0"], "preference.beta"),
        (["stage=dpo", "data.columns.margin=gap"], "data.columns.margin has no effect with stage dpo"),
        (
            ["stage=dpo", "preference.loss=ipo", "preference.length_normalized=true"],
            "no effect with preference.loss ipo",
        ),
        (["stage=ppo"], "stage"),
        (["stage=rm", "preference.beta=0.5"], "preference.beta has no effect with stage rm"),
        (["stage=kto", "preference.center_rewards=0.01"], "preference.center_rewards has no effect with stage kto"),
        (["stage=kto", "data.preference=pairs"], "stage kto needs single answers with a label"),
    ],
)
def test_settings_without_effect_are_refused(options, problem, tiny, pairs, tmp_path, glmtune_command):
    result = _train(glmtune_command, tiny("chatglm2"), pairs, tmp_path / "run", *options)
    assert result.code == 1
    assert problem in result.err
    assert not (tmp_path / "run").exists()


def test_the_best_checkpoint_by_a_number_of_pairs(tiny, pairs, tmp_path, glmtune_command):
    """The metric is checked before anything is loaded, by the stage."""
    best = ["training.load_best_model_at_end=true", "training.eval_strategy=steps", "training.eval_steps=2"]
    settings = ["stage=dpo", "training.max_steps=4", "training.learning_rate=1e-2", *best]
    chosen = "training.metric_for_best_model=eval_margin"
    result = _train(glmtune_command, tiny("chatglm2"), pairs, tmp_path / "run", *settings, chosen)
    assert result.code == 0, result.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    margins = {entry["step"]: entry["eval_margin"] for entry in entries if "eval_margin" in entry}
    assert summary["kept_step"] == max(margins, key=margins.__getitem__)
    unknown = "training.metric_for_best_model=rouge_l"
    result = _train(glmtune_command, tiny("chatglm2"), pairs, tmp_path / "other", *settings, unknown)
    assert result.code == 1
    assert "margin" in result.err


def test_the_option_of_the_command(tiny, pairs, tmp_path, glmtune_command):
    words = ["train", "--model", tiny("chatglm2"), "--data", pairs, "--output", tmp_path / "run"]
    refused = glmtune_command(*words)
    assert refused.code == 1
    assert "--stage dpo" in refused.err, "the advice names the option"
    result = glmtune_command(
        *words, "--stage", "dpo", "--set", "training.max_steps=1", "--set", "training.report_to=none"
    )
    assert result.code == 0, result.err
    assert "stage: dpo" in (tmp_path / "run" / "config.yaml").read_text("utf-8")


def test_encoded_rows_are_never_taken_for_pairs(tiny, pairs, tmp_path, glmtune_command):
    """Of an even number of single answers, neighbours would be compared without a word."""
    words = ["data", "tokenize", pairs, "--model", tiny("chatglm2"), "--output", tmp_path / "rows"]
    result = glmtune_command(*words, "--set", "stage=dpo")
    assert result.code == 1
    assert "encoded rows are single answers" in result.err
    assert glmtune_command(*words, "--set", "data.preference=chosen").code == 0
    result = _train(glmtune_command, tiny("chatglm2"), tmp_path / "rows", tmp_path / "run", "stage=dpo")
    assert result.code == 1
    assert "encoded rows are single answers" in result.err


def test_the_preview_has_both_answers(tiny, pairs, glmtune_command):
    result = glmtune_command("data", "preview", pairs, "--model", tiny("chatglm2"), "--set", "stage=dpo")
    assert result.code == 0, result.err
    assert "row 1 has the better answer" in result.out
    assert BETTER in result.out
    assert WORSE in result.out
