"""KTO: how answers with a label are read, its loss and KL estimate against plain formulas, and whole runs."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

import glmtune
from glmtune.config import PreferenceConfig, RunConfig
from glmtune.config_parsing import build_dataclass
from glmtune.data.batches import BlockDataset, LabelledCollator
from glmtune.data.cache import encode_sources
from glmtune.data.encoding import EncodedRow, EncodingRules
from glmtune.data.mismatched_rows import add_mismatched_rows
from glmtune.data.sources import open_source
from glmtune.errors import DataError
from glmtune.models.packed_attention import set_packed_attention
from glmtune.preference import make_objective
from glmtune.preference.losses import AnswerScores, compute_kto_losses
from glmtune.run_dir import RunDir
from glmtune.training.arguments import make_arguments
from glmtune.training.training_data import TrainingData
from tiny import FAMILIES

QUESTION, GOOD, BAD = "你好吗", "我很好，谢谢", "走开"


def _write(folder, rows):
    path = folder / "labels.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


def _read(folder, *rows, **options):
    return list(open_source(_write(folder, list(rows)), preference="labels", **options))


def _user(text):
    return {"role": "user", "content": text}


def _assistant(text):
    return {"role": "assistant", "content": text}


SHAPES = {
    "texts": {"prompt": QUESTION, "completion": GOOD, "label": True},
    "message lists": {"prompt": [_user(QUESTION)], "completion": [_assistant(GOOD)], "label": True},
    "alpaca": {"instruction": QUESTION, "input": "", "output": GOOD, "kto_tag": True},
    "sharegpt": {
        "conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": GOOD}],
        "kto_tag": True,
    },
    "messages": {"messages": [_user(QUESTION), _assistant(GOOD)], "label": True},
    "number": {"query": QUESTION, "response": GOOD, "label": 1},
    "text": {"query": QUESTION, "response": GOOD, "label": "True"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_labels_of_every_shape(shape, tmp_path):
    good = SHAPES[shape]
    name = "kto_tag" if "kto_tag" in good else "label"
    bad = {**good, name: type(good[name])(0) if not isinstance(good[name], str) else "false"}
    first, second = _read(tmp_path, good, bad)
    for conversation in (first, second):
        contents = [(m["role"], m["content"]) for m in conversation.messages]
        assert contents == [("user", QUESTION), ("assistant", GOOD)]
        assert conversation.unread_columns == ()
    assert (first.is_desirable, second.is_desirable) == (True, False)


def test_pairs_are_a_good_and_a_bad_answer(tmp_path):
    (pair,) = _read(tmp_path, {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD})
    assert (pair.is_desirable, pair.rejected.is_desirable) == (True, False)


def test_answers_before_the_last_question_are_not_judged(tmp_path):
    messages = [_user("早"), _assistant("早上好"), _user(QUESTION), _assistant(GOOD)]
    (row,) = _read(tmp_path, {"messages": messages, "label": False})
    assert [m.get("loss") for m in row.messages if m["role"] == "assistant"] == [False, None]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"prompt": QUESTION, "response": GOOD}], "no label beside the answer"),
        ([SHAPES["texts"], {"prompt": QUESTION, "completion": GOOD}], "no label beside the answer"),
        ([{"prompt": QUESTION, "response": GOOD, "label": "bad"}], "must be true or false"),
        ([{"prompt": QUESTION, "response": GOOD, "label": 0.5}], "must be true or false"),
        ([{"question": QUESTION, "label": True}], "no known question and answer"),
    ],
)
def test_rows_without_a_label_are_refused(rows, problem, tmp_path):
    with pytest.raises(DataError, match=r"labels\.json:\d.*" + problem):
        _read(tmp_path, *rows)


def test_a_file_without_pairs_is_refused_under_dpo(tmp_path):
    """Of single answers, neighbours would be compared."""
    with pytest.raises(DataError, match="no worse answer"):
        list(open_source(_write(tmp_path, [{"prompt": QUESTION, "response": GOOD}] * 2), preference="pairs"))
    with pytest.raises(DataError, match="no worse answer") as caught:
        list(open_source(_write(tmp_path, [{"prompt": QUESTION, "response": GOOD, "label": True}]), preference="pairs"))
    assert "--stage kto" in str(caught.value.hint)


def _row(prompt, answer, number=0):
    return EncodedRow([*prompt, *answer], [*[-100] * len(prompt), *answer], 0, number, f"x:{number}", 1.0)


def test_a_mismatch_has_the_answer_to_another_question():
    rows = [_row([1], [11]), _row([2, 2], [12, 12]), _row([2, 2], [13]), _row([3], [14, 14, 14])]
    both = list(add_mismatched_rows(rows, 4))
    assert both[::2] == rows
    # The first one has that of the last row; the third one not that of the second, whose question is the same.
    assert [row.input_ids for row in both[1::2]] == [[1, 14, 14, 14], [2, 2, 11], [2, 2, 11], [3, 13]]
    assert [row.labels for row in both[1::2]][3] == [-100, 13]
    assert list(add_mismatched_rows([_row([1, 1, 1], [5, 6]), _row([2], [7, 8, 9])], 4))[1].input_ids == [1, 1, 1, 7]


def test_all_rows_with_one_question_are_refused():
    with pytest.raises(DataError, match=r"x:0: .* the same one"):
        list(add_mismatched_rows([_row([1], [2]), _row([1], [3])], 8))


def _compute_plain_loss(options, total, length, reference, is_good, kl):
    """The loss of an answer in Python numbers, as the paper writes it."""
    ratio = total - reference
    value = 1 / (1 + math.exp(-options.beta * ((ratio - kl) if is_good else (kl - ratio))))
    weight = options.desirable_weight if is_good else options.undesirable_weight
    return weight * (1 - value) - (options.sft_weight * total / length if is_good else 0)


@pytest.mark.parametrize(
    "values",
    [{}, {"beta": 0.4}, {"desirable_weight": 1.3, "undesirable_weight": 0.2}, {"sft_weight": 0.5}],
    ids=lambda values: " ".join(values) or "plain",
)
def test_losses_and_gradients_are_those_of_the_paper(values):
    options = PreferenceConfig(**values)
    sums, lengths, references, labels, kl = (
        [-9.0, -31.0, -14.0],
        [5, 12, 7],
        [-11.0, -29.5, -13.0],
        [True, False, True],
        0.8,
    )
    sums_P = torch.tensor(sums, dtype=torch.float64, requires_grad=True)
    answers = AnswerScores(sums_P, torch.tensor(lengths), torch.tensor(references, dtype=torch.float64))
    result = compute_kto_losses(answers, torch.tensor(labels), torch.tensor(kl, dtype=torch.float64), options)
    (gradient_P,) = torch.autograd.grad(result.losses_P.sum(), sums_P)
    for place in range(3):
        facts = (lengths[place], references[place], labels[place], kl)
        assert result.losses_P[place].item() == pytest.approx(
            _compute_plain_loss(options, sums[place], *facts), abs=1e-9
        )
        ends = [_compute_plain_loss(options, sums[place] + sign * 1e-5, *facts) for sign in (1, -1)]
        assert float(gradient_P[place]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-6)
    assert result.is_right_P.tolist() == [True, True, False]


def _make_data(base, tmp_path, blocks):
    """Four labelled answers with their mismatches, in blocks of store rows."""
    rows = [
        {"prompt": QUESTION * n, "completion": (GOOD if n % 2 else BAD) * n, "label": bool(n % 2)} for n in range(1, 5)
    ]
    family = glmtune.detect_family(base)
    source = open_source(_write(tmp_path, rows), preference="labels")
    store = encode_sources([source], family, glmtune.load_tokenizer(base), EncodingRules(64, 64)).rows
    dataset = BlockDataset(store, blocks)
    return TrainingData(dataset, dataset, LabelledCollator(family), {})


def _sum_logps(model, row):
    """The log-probability of a row's answer, from the logits of transformers' own forward pass of the row alone."""
    ids, labels = torch.tensor([list(row.input_ids)]), torch.tensor(list(row.labels))
    logits_TV = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    places = (labels[1:] != -100).nonzero()[:, 0]
    return logits_TV.double().log_softmax(-1)[places, labels[1:][places]].sum()


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_answers_have_the_losses_of_the_answers_alone(family, tiny, tmp_path):
    """Losses and gradients of a model that has moved from its reference, in one sequence and in several batches."""
    base = tiny(family)
    data = _make_data(base, tmp_path, [[0, 1, 2, 3], [4, 5, 6, 7]])
    config = build_dataclass(RunConfig, {"stage": "kto", "model": "m", "data": "d"}, "test")
    objective = make_objective(config)
    packed, plain = (glmtune.load_model(base, dtype=torch.float32, device="cpu") for _ in range(2))
    set_packed_attention(packed)
    values = {"report_to": "none", "use_cpu": True, "per_device_eval_batch_size": 3}
    arguments = make_arguments(RunConfig(training=values), RunDir(tmp_path / "run"), torch.float32)
    objective.compute_reference(packed, data, arguments)
    rows = [data.train.rows[number] for number in range(8)]
    with torch.no_grad():
        references = [_sum_logps(plain, row).item() for row in rows]

    # Towards the answers, so that the estimate of the KL divergence is not 0.
    heads = [model.get_output_embeddings().weight for model in (packed, plain)]
    for row in rows[::2]:
        (direction,) = torch.autograd.grad(_sum_logps(plain.requires_grad_(True), row), heads[1])
        for head in heads:
            head.data.add_(direction, alpha=0.002)
    ratios = [_sum_logps(plain, row) - reference for row, reference in zip(rows, references, strict=True)]
    kl = max(0.0, sum(float(ratio.detach()) for ratio in ratios[1::2]) / 4)
    assert kl > 0.1
    signs = [1 if n % 2 else -1 for n in range(1, 5)]
    expected = [1 - torch.sigmoid(0.1 * s * (ratio - kl)) for s, ratio in zip(signs, ratios[::2], strict=True)]
    names = [name for name, _ in plain.named_parameters() if "layers.0" in name or "lm_head" in name]
    parameters = [dict(plain.named_parameters())[name] for name in names]
    gradients = torch.autograd.grad(sum(expected), parameters, allow_unused=True)

    packed.requires_grad_(True)
    whole = [data.collate([data.train[0], data.train[1]])]
    parts = [data.collate([data.train[0]]), data.collate([data.train[1]])]
    for batches in (whole, parts):
        objective.prepare_batches(packed, batches, True)
        losses = [objective.compute_losses(packed, batch, None) for batch in batches]
        assert torch.cat(losses).tolist() == pytest.approx([one.item() for one in expected], abs=1e-6)
        ours = [dict(packed.named_parameters())[name] for name in names]
        for name, one, other in zip(
            names,
            torch.autograd.grad(sum(one.sum() for one in losses), ours, allow_unused=True),
            gradients,
            strict=True,
        ):
            assert (one is None) == (other is None), name
            if one is not None:
                torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    sums = dict(zip(objective.metric_names, objective.pop_metrics(True).tolist(), strict=True))
    assert sums["kl"][0] / sums["kl"][1] == pytest.approx(kl, rel=1e-6)
    assert [sums[key][1] for key in ("better_reward", "worse_logp", "accuracy")] == [4, 4, 8]


def _train(command, base, data, output, *options):
    settings = ["stage=kto", "training.report_to=none", "training.logging_steps=1", "training.save_steps=2", *options]
    return command(
        *("train", "--model", base, "--data", data, "--output", output),
        *(word for setting in settings for word in ("--set", setting)),
    )


@pytest.fixture
def labels(tmp_path):
    rows = [
        {"prompt": f"{QUESTION}{n}", "completion": GOOD if n % 3 else BAD, "label": n % 3 > 0, "id": n}
        for n in range(12)
    ]
    return _write(tmp_path, rows)


@pytest.mark.parametrize(("family", "method"), [("chatglm", "ptuning"), ("glm4", "lora")])
def test_runs_learn_the_labels(family, method, tiny, labels, tmp_path, glmtune_command):
    rate = {"lora": 2e-2, "ptuning": 5e-2}[method]
    options = [f"method={method}", f"training.learning_rate={rate}", "training.max_steps=8", "data.eval_fraction=0.2"]
    result = _train(glmtune_command, tiny(family), labels, tmp_path / "run", *options)
    assert result.code == 0, result.err
    assert "10 training and 2 evaluation rows, packed" in result.out
    assert "good and" in result.out
    assert "advise 1 to 1.33: --set preference.desirable_weight=" in result.err + result.out
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps = [entry for entry in entries if "loss" in entry]
    if method == "lora":  # an adapter that is still zero is its own reference
        assert steps[0]["loss"] == pytest.approx(0.5, abs=1e-6)
        assert steps[0]["kl"] == 0
    assert steps[-1]["margin"] > steps[0]["margin"] + 0.05
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert any("eval_kl" in entry for entry in entries)


def test_a_resumed_run_equals_an_uninterrupted_one(tiny, labels, tmp_path, glmtune_command):
    options = ["data.packing=false", "training.learning_rate=1e-2", "training.lr_scheduler_type=constant"]
    for name, steps in (("whole", 4), ("resumed", 2)):
        sets = [*options, f"training.max_steps={steps}"]
        result = _train(glmtune_command, tiny("chatglm3"), labels, tmp_path / name, *sets)
        assert result.code == 0, result.err
        assert "A step has about 2.0 answers" in result.out + result.err
        assert "--set training.gradient_accumulation_steps=8" in result.out + result.err
    resumed = glmtune_command("train", "--resume", "--output", tmp_path / "resumed", "--set", "training.max_steps=4")
    assert resumed.code == 0, resumed.err
    whole, ours = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "resumed")
    )
    assert all(torch.equal(whole[key], ours[key]) for key in whole)


def test_encoded_rows_have_no_labels(tiny, labels, tmp_path, glmtune_command):
    words = ["data", "tokenize", labels, "--model", tiny("chatglm2"), "--output", tmp_path / "rows"]
    result = glmtune_command(*words, "--set", "stage=kto")
    assert result.code == 1
    assert "needs a label in each row" in result.err
