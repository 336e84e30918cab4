"""Online reinforcement learning: advantages and losses against plain formulas, rollouts, rewards and runs."""

from __future__ import annotations

import copy
import json
import math
import statistics

import pytest
import torch
from safetensors.torch import load_file

import glmtune
from glmtune.config import GrpoConfig, RunConfig
from glmtune.config_parsing import build_dataclass
from glmtune.data.batches import BlockCollator
from glmtune.data.conversation import Conversation
from glmtune.data.encoding import EncodedRow
from glmtune.data.sources import open_source
from glmtune.errors import ConfigError, DataError
from glmtune.generation.batched import generate_batched
from glmtune.generation.sampling import Sampling
from glmtune.methods import make_method
from glmtune.models.packed_attention import set_packed_attention
from glmtune.preference import load_reward_model
from glmtune.preference.group_losses import (
    combine_rewards,
    compute_advantages,
    compute_answer_weights,
    compute_token_losses,
)
from glmtune.preference.grpo_objective import GrpoObjective
from glmtune.preference.reward_functions import Answer, FunctionReward
from glmtune.preference.rollouts import CompletionMaker, Prompt
from glmtune.run_dir import RunDir
from glmtune.training.arguments import make_arguments
from glmtune.training.generated import extract_last_turn
from glmtune.training.objective import ObjectiveContext, StepDataError
from glmtune.training.training_data import prepare_data
from tiny import FAMILIES

QUESTION = "你好吗"
NONE = math.nan

REWARDS = '''
def count_letters(prompts, completions, reference, level):
    """Different letters of each answer."""
    assert prompts[0][-1]["role"] == "user" and reference[0].startswith("好") and isinstance(level[0], int)
    return [float(len(set(text))) for text in completions]


def shorten(completions, completion_ids, **columns):
    return [-len(ids) for ids in completion_ids]


def prefer_even(completion_ids, **columns):
    return [sum(token % 2 == 0 for token in ids) / max(len(ids), 1) for ids in completion_ids]


def apply_sometimes(completions, **columns):
    return [None if "a" in text else 1 for text in completions]
'''


@pytest.fixture
def rewards(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text(REWARDS, encoding="utf-8")
    return path


@pytest.fixture
def questions(tmp_path):
    return _write(tmp_path, [{"prompt": f"{QUESTION}{n}", "response": f"好{n}", "level": n} for n in range(12)])


def _write(folder, rows, name="questions.json"):
    path = folder / name
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


# --- formulas ---


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_those_of_plain_numbers(scale):
    groups = [[1.0, 2.0, 4.0], [0.3, 0.3, 0.3], [5.0, NONE, 7.0], [NONE, NONE, 1.0]]
    batch = statistics.stdev(value for group in groups for value in group if not math.isnan(value))
    rewards_QG = torch.tensor(groups, dtype=torch.float64)
    result = compute_advantages(rewards_QG, scale, batch)
    for group, values, std in zip(groups, result.values_QG.tolist(), result.stds_Q.tolist(), strict=True):
        present = [value for value in group if not math.isnan(value)]
        own = statistics.stdev(present) if len(present) > 1 else 0.0
        divisor = {"group": own + 1e-4, "batch": batch + 1e-4, "none": 1.0}[scale]
        mean = statistics.fmean(present)
        expected = [0.0 if math.isnan(value) else (value - mean) / divisor for value in group]
        assert values == pytest.approx(expected, abs=1e-9)
        assert std == pytest.approx(own, abs=1e-9)
    assert result.values_QG[1].tolist() == [0, 0, 0], "equal rewards are exactly no advantage"


def test_rewards_are_added_where_there_are_any():
    table = torch.tensor([[1.0, 2.0], [NONE, 3.0], [NONE, NONE]], dtype=torch.float64)
    sums = combine_rewards(table, torch.tensor([2.0, 0.5], dtype=torch.float64)).tolist()
    assert sums[:2] == [3.0, 1.5]
    assert math.isnan(sums[2])


# Of two micro-batches, the second with one answer that is left out: (log-probability, old, reference) by token.
ANSWERS = [
    [([-1.0, -2.0, -0.5], [-1.0, -1.2, -0.9], [-1.1, -2.2, -0.2], 0.7), ([-0.3], [-0.9], [-0.4], -1.3)],
    [([-2.0, -0.1], [-2.4, -0.6], [-1.0, -0.7], 1.1), None],
]


def _compute_plain_loss(answers, options):
    """The loss of a step in Python numbers, as the papers write it."""
    low, high = options.epsilon, options.epsilon if options.epsilon_high is None else options.epsilon_high

    def sum_tokens(answer):
        total = 0.0
        for now, old, reference in zip(*answer[:3], strict=True):
            ratio, advantage = math.exp(now - old), answer[3]
            clipped = min(max(ratio, 1 - low), 1 + high)
            divergence = math.exp(reference - now) - (reference - now) - 1
            total += -min(ratio * advantage, clipped * advantage) + options.beta * divergence
        return total

    flat = [answer for batch in answers for answer in batch]
    if options.loss_type == "grpo":
        return sum(sum_tokens(a) / len(a[0]) for a in flat if a) / len(flat)
    if options.loss_type == "dr_grpo":
        return sum(sum_tokens(a) for a in flat if a) / (len(flat) * options.max_completion_length)
    if options.loss_type == "dapo":
        return sum(sum_tokens(a) for a in flat if a) / sum(len(a[0]) for a in flat if a)
    means = [sum(sum_tokens(a) for a in batch if a) / sum(len(a[0]) for a in batch if a) for batch in answers]
    return sum(means) / len(means)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("values", [{}, {"beta": 0.3, "epsilon": 0.1, "epsilon_high": 0.28}])
def test_losses_and_gradients_are_those_of_the_papers(loss_type, values):
    options = GrpoConfig(loss_type=loss_type, max_completion_length=9, **values)
    lengths = [[len(answer[0]) if answer else 0 for answer in batch] for batch in ANSWERS]
    weights = compute_answer_weights(lengths, options, 4, 6, 2)
    flat = [answer for batch in ANSWERS for answer in batch if answer]
    kept = [weight for batch in weights for weight in batch if weight]
    assert len(kept) == len(flat)
    columns = [torch.tensor([x for answer in flat for x in answer[column]], dtype=torch.float64) for column in range(3)]
    columns[0].requires_grad_()
    rows_N = torch.tensor([number for number, answer in enumerate(flat) for _ in answer[0]])
    advantages_N = torch.tensor([answer[3] for answer in flat], dtype=torch.float64)[rows_N]
    result = compute_token_losses(*columns[:2], columns[2] if options.beta else None, advantages_N, options)
    loss = (result.losses_N * torch.tensor(kept, dtype=torch.float64)[rows_N]).sum() / 4
    assert loss.item() == pytest.approx(_compute_plain_loss(ANSWERS, options), abs=1e-9)

    (gradient_N,) = torch.autograd.grad(loss, columns[0])
    step, token = 1e-6, 0
    for batch, answers in enumerate(ANSWERS):
        for place, answer in enumerate(answers):
            for position in range(len(answer[0]) if answer else 0):
                ends = []
                for sign in (1, -1):
                    moved = [list(each) for each in ANSWERS]
                    now = list(answer[0])
                    now[position] += sign * step
                    moved[batch][place] = (now, *answer[1:])
                    ends.append(_compute_plain_loss(moved, options))
                assert float(gradient_N[token]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-6)
                token += 1
    ratios = [(math.exp(n - o), a[3]) for a in flat for n, o in zip(a[0], a[1], strict=True)]
    high = options.epsilon if options.epsilon_high is None else options.epsilon_high
    expected = [r > 1 + high if a > 0 else r < 1 - options.epsilon for r, a in ratios]
    assert result.is_clipped_N.tolist() == expected
    assert any(expected)


# --- steps of a model ---


def _load_model(base):
    """A random model whose answers have ends."""
    model = glmtune.load_model(base, dtype=torch.float32, device="cpu")
    ends = glmtune.detect_family(base).get_stop_ids(glmtune.load_tokenizer(base))
    with torch.no_grad():
        model.get_output_embeddings().weight[ends] *= 8
    return model


def _start_objective(base, questions, rewards, tmp_path, *, method="lora", **settings):
    """The objective of a run, and its model, which has moved away from the one before training."""
    tree = {
        "stage": "grpo",
        "method": method,
        "model": str(base),
        "data": str(questions),
        "reward": f"{rewards}:count_letters",
        "lora": {"targets": ["all-linear"]},
        "ptuning": {"num_virtual_tokens": 4},
        "training": {"report_to": "none", "use_cpu": True},
        "grpo": {"num_generations": 3, "max_completion_length": 10, "temperature": 1.3, **settings},
    }
    config = build_dataclass(RunConfig, tree, "test")
    family, tokenizer = glmtune.detect_family(base), glmtune.load_tokenizer(base)
    model = _load_model(base)
    set_packed_attention(model)
    torch.manual_seed(0)
    model = make_method(config, family, torch.float32).prepare(model)
    data = prepare_data(config, family, tokenizer)
    arguments = make_arguments(config, RunDir(tmp_path / "run"), torch.float32)
    objective = GrpoObjective(config)
    objective.start(ObjectiveContext(model, tokenizer, family, data, arguments, tmp_path / "samples.jsonl"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.05)
    return objective, model, data


def _compute_logps(model, family, row, answer, temperature):
    """Log-probabilities of an answer's tokens, from the logits of its row alone."""
    sequence = family.build_row(extract_last_turn(row).prompt_ids, answer)
    encoded = EncodedRow(sequence.input_ids, sequence.labels, sequence.context, 0, "")
    batch = BlockCollator(family)([[(0, encoded)]])
    mask_TT = torch.ones(len(encoded.input_ids), len(encoded.input_ids), dtype=torch.bool).tril()
    mask_TT[:, : encoded.context] = True
    logits_TV = model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=mask_TT[None, None]
    ).logits[0]
    logs_NV = (logits_TV.double() / temperature).log_softmax(-1)[-len(answer) - 1 : -1]
    return logs_NV.gather(1, torch.tensor(answer)[:, None])[:, 0]


@pytest.mark.parametrize(
    ("family", "method", "settings"),
    [
        ("chatglm", "ptuning", {"beta": 0.2, "loss_type": "dapo"}),
        ("chatglm2", "lora", {"beta": 0.2, "num_iterations": 2, "loss_type": "grpo"}),
        ("chatglm3", "full", {"beta": 0.1, "mask_truncated_completions": True, "loss_type": "dr_grpo"}),
        ("glm4", "lora", {"scale_rewards": "batch", "loss_type": "bnpo"}),
    ],
)
def test_a_step_has_the_loss_of_its_answers_alone(family, method, settings, tiny, questions, rewards, tmp_path):
    """Two micro-batches of groups in packed parts, against rows alone and plain numbers."""
    base = tiny(family)
    objective, model, data = _start_objective(base, questions, rewards, tmp_path, method=method, **settings)
    options = GrpoConfig(num_generations=3, max_completion_length=10, temperature=1.3, **settings)
    groups, answer_questions = [], objective._answer_questions

    def record(rows):
        groups.extend(answer_questions(rows))
        return groups

    objective._answer_questions = record
    batches = [data.collate([data.train[0], data.train[1]]), data.collate([data.train[2]])]
    prepared = objective.generate_batches(batches, 1, writes_samples=False)
    old = copy.deepcopy(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    if options.num_iterations > 1:  # the second update: the model is another one
        with torch.no_grad():
            trained[-1].mul_(1.2)
    count = sum(int(objective.count_items(batch)) for batch in prepared)
    parts = [part for batch in prepared for part in objective.split_batch(batch)]
    loss = sum(objective.compute_losses(model, part, None).sum() for part in parts) / count
    gradients = torch.autograd.grad(loss, trained)

    reference = _load_model(base)
    scores = [[[len(set(a.completion.text)) for a in group] for group in batch] for batch in groups]
    batch_std = statistics.stdev(float(x) for batch in scores for group in batch for x in group)
    answers = []
    for batch, batch_scores in zip(groups, scores, strict=True):
        answers.append([])
        for group, values in zip(batch, batch_scores, strict=True):
            std = batch_std if options.scale_rewards == "batch" else statistics.stdev(map(float, values))
            for answer, value in zip(group, values, strict=True):
                assert answer.rewards == [value]
                row, ids = data.train.rows[answer.row], answer.completion.ids
                if options.mask_truncated_completions and answer.completion.is_cut:
                    answers[-1].append(None)
                    continue
                now, before, first = (
                    _compute_logps(each, data.collate.family, row, ids, 1.3) for each in (model, old, reference)
                )
                advantage = (value - statistics.fmean(values)) / (std + 1e-4)
                answers[-1].append((now, before.detach(), first.detach(), advantage))
    assert any(answer and len(answer[0]) < 10 for batch in answers for answer in batch), "not all are cut"
    expected = _compute_torch_loss(answers, options)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for ours, plain in zip(gradients, torch.autograd.grad(expected, trained), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-4)
    assert max(float(gradient.abs().max()) for gradient in gradients) > 1e-3


def _compute_torch_loss(answers, options):
    """As `_compute_plain_loss`, of tensors."""
    leaves = [[answer and tuple(x.tolist() for x in answer[:3]) + answer[3:] for answer in batch] for batch in answers]
    total = torch.tensor(_compute_plain_loss(leaves, options), dtype=torch.float64)
    for batch, places in enumerate(answers):
        for place, answer in enumerate(places):
            for position in range(len(answer[0]) if answer else 0):
                ends = []
                for sign in (1, -1):
                    moved = [list(each) for each in leaves]
                    now = list(moved[batch][place][0])
                    now[position] += sign * 1e-6
                    moved[batch][place] = (now, *moved[batch][place][1:])
                    ends.append(_compute_plain_loss(moved, options))
                slope = (ends[0] - ends[1]) / 2e-6
                total = total + slope * (answer[0][position] - answer[0][position].detach())
    return total


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["lora", "ptuning"])
def test_answers_are_those_of_the_model_that_is_trained(family, method, tiny, questions, rewards, tmp_path):
    """The likeliest answers, against the loop of static batches; and the model is as it was."""
    base = tiny(family)
    objective, model, data = _start_objective(base, questions, rewards, tmp_path, method=method)
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    tokenizer = objective._context.tokenizer
    prompts = [extract_last_turn(data.train.rows[row]).prompt_ids for row in range(5)]
    maker = CompletionMaker(
        model, tokenizer, data.collate.family, max_new_tokens=12, temperature=0.0, top_p=1.0, max_batch=3
    )
    model.train()
    completions = maker.complete([Prompt(ids, 1, "") for ids in prompts])
    assert all(module.training for module in model.modules())
    model.eval()
    expected = generate_batched(model, tokenizer, data.collate.family, prompts, Sampling(max_new_tokens=12))
    assert [c.answer_ids for c in completions] == [reply.ids for reply in expected]
    assert [c.is_cut for c in completions] == [reply.stop == "length" for reply in expected]
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    for name, (is_trained, value) in before.items():
        assert after[name].requires_grad == is_trained
        assert torch.equal(after[name], value)


def test_answers_without_an_effect_are_not_computed(tiny, questions, rewards, tmp_path):
    """Of groups with equal rewards, one answer alone remains, for the sake of the gradient, which is 0."""
    objective, model, data = _start_objective(tiny("glm4"), questions, rewards, tmp_path)
    rewards.write_text("def count_letters(completions, **columns):\n    return [1.0] * len(completions)\n")
    objective._rewards[0]._function = FunctionReward(f"{rewards}:count_letters")._function
    (batch,) = objective.generate_batches([data.collate([data.train[0], data.train[1]])], 1, writes_samples=False)
    (part,) = batch.parts
    assert (len(part["rows"]), int(objective.count_items(batch))) == (1, 6)
    objective.compute_losses(model, part, None).sum().backward()
    assert all(float(p.grad.abs().max()) == 0 for p in model.parameters() if p.grad is not None)
    sums_K2 = objective.pop_metrics(is_evaluation=False)
    metrics = dict(zip(objective.metric_names, (sums_K2[:, 0] / sums_K2[:, 1]).tolist(), strict=True))
    assert (metrics["zero_advantage"], metrics["reward"], metrics["reward_std"]) == (1.0, 1.0, 0.0)


# --- rewards ---


def _answer(text="abc", **columns):
    messages = [{"role": "user", "content": QUESTION}]
    return Answer(Conversation(messages, "rows.json:3"), messages, text, [1, 2], columns, "rows.json:3")


BROKEN = """
def raises(completions, **columns):
    for text in completions:
        if text == "bad":
            raise ValueError("no such thing")
    return [0] * len(completions)

def too_few(completions, **columns):
    return [1.0]

def not_a_number(completions, **columns):
    return ["1"] * len(completions)

def infinite(completions, **columns):
    return [float("inf")] * len(completions)

def nothing(completions, **columns):
    pass

async def later(completions, **columns):
    return [0]
"""


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("raises", r"broken\.py:5: raises failed with ValueError: no such thing \(an answer to rows\.json:3: 'bad'\)"),
        ("too_few", "returned 1 numbers for 2 answers"),
        ("not_a_number", r"returned '1' for an answer to rows\.json:3"),
        ("infinite", "returned inf for an answer"),
        ("nothing", "returned NoneType"),
        ("later", "async"),
    ],
)
def test_errors_of_functions_name_the_line_and_the_row(name, problem, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(BROKEN, encoding="utf-8")
    with pytest.raises(StepDataError, match=problem):
        FunctionReward(f"{path}:{name}").score([_answer(), _answer("bad")])


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("missing.py:score", "there is no file"),
        ("rewards.py", "which function"),
        ("rewards.py:shortn", "Did you mean|shorten"),
        ("syntax.py:score", r"syntax\.py:2: cannot be imported"),
        ("exits.py:score", r"exits\.py:2: cannot be imported \(SystemExit"),
        ("score", "FILE.py:FUNCTION"),
    ],
)
def test_functions_that_are_not_there_are_named(entry, problem, rewards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "syntax.py").write_text("def score(completions):\nreturn [\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit()\n")
    tree = {"stage": "grpo", "model": "m", "data": "d", "reward": entry}
    with pytest.raises(ConfigError, match=problem) as caught:
        GrpoObjective(build_dataclass(RunConfig, tree, "test"))
    assert caught.value.message


def test_functions_get_what_they_name(tmp_path):
    path = tmp_path / "named.py"
    path.write_text(
        "def some(completions, level, other=None):\n    return [level[0], None if other is None else other[1]]\n"
        "def positional(completions, /):\n    return []\n"
    )
    reward = FunctionReward(f"{path}:some")
    assert reward.score([_answer(level=True, reference="x"), _answer(level=2)]) == [1.0, None]
    assert reward.score([_answer(level=4), _answer(other=2.5)]) == [4.0, 2.5]
    reward.check({"level"})
    with pytest.raises(ConfigError, match="needs 'level', which no row has"):
        reward.check({"levels"})
    with pytest.raises(ConfigError, match="positional only"):
        FunctionReward(f"{path}:positional")


# --- rows ---

ROWS = [
    ({"prompt": "1+1?", "ground_truth": "2"}, "1+1?", None, {"ground_truth": "2"}),
    ({"prompt": [{"role": "user", "content": "q"}], "data": {"a": 1}}, "q", None, {"data": {"a": 1}}),
    ({"question": "2+2", "answer": 4}, "2+2", 4, {"answer": 4}),
    ({"question": "2+2", "answer": None}, "2+2", None, {}),
    ({"problem": "x", "solution": "y"}, "x", None, {"solution": "y"}),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "q", "a", {"chosen": "a"}),
    ({"instruction": "q", "input": "i"}, "q\ni", None, {}),
    ({"prompt": "q", "response": "r", "label": False}, "q", "r", {"label": False}),
    ({"content": "q", "summary": "s"}, "q", "s", {}),
    ({"prompt": "q", "reference": "own"}, "q", "own", {}),
    ({"messages": [{"role": "user", "content": "q"}], "level": 3}, "q", None, {"level": 3}),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "q", "a", {}),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: ",".join(row[0]))
def test_rows_of_every_kind_are_questions(row, tmp_path):
    values, question, reference, columns = row
    (conversation,) = open_source(_write(tmp_path, [values]), preference="prompts")
    assert [(m["role"], m["content"]) for m in conversation.messages] == [("user", question), ("assistant", "")]
    assert conversation.reference == reference
    assert columns.items() <= conversation.columns.items()


def test_rows_of_several_kinds_in_one_file(tmp_path):
    assert len(list(open_source(_write(tmp_path, [row[0] for row in ROWS]), preference="prompts"))) == len(ROWS)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "plain"}, "without a question"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "no question"),
        ({"prompt": "a", "completions": [1]}, "'completions'"),
    ],
)
def test_rows_without_a_question_are_refused(row, problem, tmp_path):
    with pytest.raises(DataError, match=r"questions\.json:2.*" + problem):
        list(open_source(_write(tmp_path, [{"prompt": "q"}, row]), preference="prompts"))


def test_questions_are_checked_and_shown_without_a_reward(tiny, questions, glmtune_command):
    checked = glmtune_command("data", "check", questions, "--set", "stage=grpo")
    assert checked.code == 0, checked.out
    words = ["data", "preview", questions, "--model", tiny("glm4"), "--set", "stage=grpo"]
    shown = glmtune_command(*words)
    assert shown.code == 0, shown.err
    assert f"{QUESTION}0" in shown.out


# --- runs ---


def _train(command, base, data, rewards, output, *options):
    settings = [
        *("training.report_to=none", "training.logging_steps=1", "training.lr_scheduler_type=constant"),
        *("grpo.max_completion_length=8", "grpo.num_generations=4", f"reward={rewards}"),
        *options,
    ]
    sets = [word for setting in settings for word in ("--set", setting)]
    return command("train", "--model", base, "--data", data, "--stage", "grpo", "--output", output, *sets)


def _read_lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("family", "method", "rate", "count"), [("chatglm", "full", 3e-2, 12), ("glm4", "lora", 6e-2, 24)]
)
def test_a_programmatic_reward_is_raised(
    family, method, rate, count, tiny, questions, rewards, tmp_path, glmtune_command
):
    output = tmp_path / "run"
    options = [f"method={method}", f"training.learning_rate={rate}", "training.max_steps=8", "data.eval_rows=3"]
    options += [f"grpo.num_generations={count}", "grpo.max_completion_length=6", "lora.targets=[all-linear]"]
    result = _train(glmtune_command, tiny(family), questions, f"{rewards}:prefer_even", output, *options)
    assert result.code == 0, result.err
    assert "which is run as your own code" in result.out
    steps = [entry for entry in _read_lines(output / "metrics.jsonl") if "loss" in entry]
    first, last = (statistics.fmean(entry["reward"] for entry in part) for part in (steps[:3], steps[-3:]))
    assert last > first + 0.07
    (evaluation,) = [entry for entry in _read_lines(output / "metrics.jsonl") if entry.get("step") == 8][1:]
    assert evaluation["eval_completion_length"] <= 6
    samples = _read_lines(output / "samples.jsonl")
    training = [sample for sample in samples if sample["kind"] == "training"]
    assert len(training) == 8 * count
    assert training[0]["prompt"][0]["content"].startswith(QUESTION)
    assert training[0]["reference"].startswith("好")
    assert training[0]["reward"] == training[0]["rewards"]["prefer_even"]
    assert "Length of answers" in (output / "report.html").read_text("utf-8")
    last_samples = [sample["reward"] for sample in samples if sample["kind"] == "evaluation" and sample["step"] == 8]
    assert statistics.fmean(last_samples) == pytest.approx(evaluation["eval_reward"])


def test_a_run_whose_reward_fails_loses_nothing(tiny, questions, rewards, tmp_path, glmtune_command):
    """Stopped by an error at step 3, corrected and resumed, against a run without one; updates are made twice."""
    options = ["training.max_steps=4", "training.learning_rate=1e-1", "grpo.num_iterations=2", "grpo.beta=0.1"]
    options += ["method=ptuning", "ptuning.num_virtual_tokens=4", "data.eval_fraction=0"]
    base, counter = tiny("chatglm"), tmp_path / "calls"
    failing = tmp_path / "failing.py"
    correct = "def score(completion_ids, **columns):\n    return [-len(ids) for ids in completion_ids]\n"
    whole = _train(glmtune_command, base, questions, f"{rewards}:shorten", tmp_path / "whole", *options)
    assert whole.code == 0, whole.err
    failing.write_text(
        "from pathlib import Path\ndef score(completion_ids, **columns):\n"
        f"    path = Path({str(counter)!r})\n"
        "    path.write_text((path.read_text() if path.exists() else '') + '1')\n"
        "    if len(path.read_text()) > 2:\n        raise KeyError('lost')\n"
        "    return [-len(ids) for ids in completion_ids]\n"
    )
    output = tmp_path / "resumed"
    failed = _train(glmtune_command, base, questions, f"{failing}:score", output, "training.save_steps=100", *options)
    assert failed.code == 1
    assert "failing.py:6: score failed with KeyError: 'lost' (an answer to" in failed.err
    assert "questions.json:" in failed.err
    assert (output / "checkpoints" / "checkpoint-2").is_dir()
    failing.write_text(correct)
    resumed = glmtune_command("train", "--resume", "--output", output)
    assert resumed.code == 0, resumed.err
    ours, theirs = (
        load_file(folder / "adapter" / "prefix_encoder.safetensors") for folder in (output, tmp_path / "whole")
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    logged = [_read_lines(folder / "metrics.jsonl") for folder in (output, tmp_path / "whole")]
    numbers = [[(e["step"], e["reward"], e["kl"], e["clip_ratio"]) for e in each if "loss" in e] for each in logged]
    assert numbers[0] == numbers[1]
    assert numbers[0][-1][2] > 0
    samples = [_read_lines(folder / "samples.jsonl") for folder in (output, tmp_path / "whole")]
    assert [s["completion"] for s in samples[0]] == [s["completion"] for s in samples[1]]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["reward="], "needs a reward"),
        (["grpo.reward_weights=[1,2]"], "2 numbers, and reward has 1"),
        (["lora.dropout=0.2"], "without dropout"),
        (["training.fsdp=full_shard"], "training.fsdp does not work"),
        (["training.deepspeed=zero3.json"], "training.deepspeed does not work"),
        (["training.neftune_noise_alpha=5"], "neftune"),
        (["preference.beta=0.3"], "under grpo"),
        (["generate.rows=5"], "generate.rows"),
        (["model.attention=flash_attention_2"], "flash_attention_2"),
        (["stage=sft"], "reward has no effect with stage sft"),
        (["training.metric_for_best_model=loss"], "rewards alone"),
        (["training.metric_for_best_model=reward_length"], "there is no reward_length"),
        (["grpo.num_generations=1"], "grpo.num_generations"),
    ],
)
def test_settings_that_do_not_work_are_refused(options, problem, tiny, questions, rewards, tmp_path, glmtune_command):
    result = _train(glmtune_command, tiny("glm4"), questions, f"{rewards}:shorten", tmp_path / "run", *options)
    assert result.code == 1
    assert problem in result.err
    assert not (tmp_path / "run").exists()


def test_the_plan_is_that_of_the_longest_answers(tiny, questions, glmtune_command):
    """A pass of as many answers as supervised rows would fit, and a copy of what is trained."""
    base = tiny("glm4")
    words = ["plan", "--model", base, "--data", questions, "--json"]
    settings = ["stage=grpo", "reward=rewards.py:score", "method=full", "grpo.max_completion_length=200"]

    def make_plan(*more):
        result = glmtune_command(*words, *(word for setting in (*settings, *more) for word in ("--set", setting)))
        assert result.code == 0, result.err
        return json.loads(result.out)

    plan = make_plan("data.max_source_length=300", "grpo.beta=0.1", "grpo.num_generations=8")
    assert plan["largest_batch"]["targets"] == 2 * 200, "two answers fit into 500 tokens"
    assert plan["parts"]["reference"] == plan["parts"]["gradients"]
    longer = make_plan("data.max_source_length=700")
    assert longer["largest_batch"]["targets"] == 4 * 200
    assert "reference" not in longer["parts"]
    assert longer["tokens"] > 11 * 8 * 200


def test_a_reward_model_beside_a_function(tiny, questions, rewards, tmp_path, glmtune_command):
    """Of another generation than the model that is trained; what is logged is what it gives alone."""
    pairs = _write(
        tmp_path, [{"prompt": f"{QUESTION}{n}", "chosen": "好", "rejected": "坏坏"} for n in range(4)], "p.json"
    )
    sets = [f"--set=training.{s}" for s in ("max_steps=1", "report_to=none", "eval_strategy=no", "learning_rate=1e-2")]
    words = ["train", "--model", tiny("chatglm3"), "--data", pairs, "--stage", "rm", "--output", tmp_path / "rm", *sets]
    assert glmtune_command(*words).code == 0
    both = f"[{rewards}:shorten, {tmp_path / 'rm'}]"
    options = ["training.max_steps=1", "training.learning_rate=1e-2", "grpo.reward_weights=[0.5,2]", "data.eval_rows=2"]
    result = _train(glmtune_command, tiny("glm4"), questions, both, tmp_path / "run", *options)
    assert result.code == 0, result.err
    assert f"reward model {tmp_path / 'rm'} (ChatGLM3-6B)" in result.out
    samples = _read_lines(tmp_path / "run" / "samples.jsonl")
    rows = [[*s["prompt"], {"role": "assistant", "content": s["completion"]}] for s in samples]
    expected = load_reward_model(tmp_path / "rm", device="cpu").score_rows(rows)
    assert [s["rewards"]["reward_model"] for s in samples] == pytest.approx(expected, abs=1e-5)
    for sample in samples:
        assert sample["reward"] == pytest.approx(
            0.5 * sample["rewards"]["shorten"] + 2 * sample["rewards"]["reward_model"]
        )
    step, evaluation = _read_lines(tmp_path / "run" / "metrics.jsonl")
    assert step["reward"] == pytest.approx(0.5 * step["reward_shorten"] + 2 * step["reward_reward_model"])
    scored = [s for s in samples if s["kind"] == "evaluation"]
    assert len(scored) == 2
    assert evaluation["eval_reward_reward_model"] == pytest.approx(
        statistics.fmean(s["rewards"]["reward_model"] for s in scored)
    )
