"""Evaluation and reports of preference tuning: rewards of pairs, KL from the reference, win rates, curves, warnings."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import report_folders as folders
import torch
import torch.nn.functional as F
from transformers import TrainerControl, TrainerState

import glmtune
from glmtune.config import PreferenceConfig, load_config
from glmtune.errors import DataError, ModelError
from glmtune.evaluation import judging
from glmtune.evaluation.dataset import read_eval_data
from glmtune.evaluation.forgetting.verdict import suggest_remedies
from glmtune.evaluation.judging import judge_replies
from glmtune.evaluation.model_info import read_settings
from glmtune.evaluation.pair_data import make_reply_rows, read_pairs
from glmtune.evaluation.pair_evaluation import (
    PairLogps,
    RewardRule,
    choose_rule,
    compute_row_logps,
    estimate_kl,
    score_pairs,
)
from glmtune.evaluation.results import PairResult
from glmtune.evaluation.win_rates import compute_win_rate, fit_logistic
from glmtune.generation.batched import generate_batched
from glmtune.generation.load import LoadedModel
from glmtune.generation.reply import Sampling
from glmtune.report.contents import read_contents
from glmtune.report.page import render_page
from glmtune.run_dir import RunDir
from glmtune.training.answer_curves import find_answer_fall
from glmtune.training.callbacks import MetricsCallback, ProgressDisplay
from tiny import FAMILIES

QUESTION, BETTER, WORSE = "你好吗", "我很好，谢谢", "走开"


def _write(folder, rows, name="pairs.json"):
    path = folder / name
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


def _pairs(count):
    return [{"prompt": f"{QUESTION}{n}", "chosen": BETTER * (1 + n % 2), "rejected": WORSE * 4} for n in range(count)]


# --- log-probabilities and rewards -----------------------------------------------------------------------------------


def _compute_plain_logp(model, ids, start):
    """The log-probability of the tokens from `start` on, by the model's own forward pass."""
    with torch.no_grad():
        logits_TV = model(input_ids=torch.tensor([ids])).logits[0].double()
    logps = F.log_softmax(logits_TV[start - 1 : -1], dim=-1)
    return float(logps.gather(1, torch.tensor(ids[start:])[:, None]).sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_of_pairs_and_of_replies(family, tiny, tmp_path):
    base = tiny(family)
    tokenizer, name = glmtune.load_tokenizer(base), glmtune.detect_family(base)
    model = glmtune.load_model(base, dtype=torch.float32, device="cpu")
    config = load_config(None, ["model=m", "data=d", "data.preference=chosen"])
    path = str(_write(tmp_path, _pairs(3)))
    data = read_eval_data(path, config.data, name, tokenizer)
    pairs = read_pairs(path, config.data, name, tokenizer)
    prompts = [row.prompt_ids for row in data.rows]
    replies = generate_batched(model, tokenizer, name, prompts, Sampling(6))
    records = [
        {"row": reply.index, "ids": [*reply.ids, *([reply.end] if reply.stop == "stop" else [])]} for reply in replies
    ]
    assert {reply.end is None for reply in replies} == {reply.stop == "length" for reply in replies}
    plain = glmtune.load_model(base, dtype=torch.float32, device="cpu")  # without our attention
    rows = [*(row for pair in pairs.pairs for row in pair.rows), *make_reply_rows(model, data.rows, records)]
    results = compute_row_logps(LoadedModel(model, tokenizer, name), rows, batch_size=2)
    for row, (total, count) in zip(rows, results, strict=True):
        ids, labels = list(map(int, row.input_ids)), list(map(int, row.labels))
        start = next(place for place, label in enumerate(labels) if label >= 0)
        assert count == len(ids) - start
        assert total == pytest.approx(_compute_plain_logp(plain, ids, start), abs=2e-4)


LOGPS = PairLogps([(-9.0, 5), (-31.0, 12), (-7.0, 4)], [(-14.0, 7), (-4.5, 3), (-7.5, 4)], [(-2.0, 4), (-3.0, 6)])
REFERENCE = PairLogps([(-11.0, 5), (-29.5, 12), (-8.0, 4)], [(-13.0, 7), (-5.0, 3), (-9.0, 4)], [(-2.5, 4), (-3.5, 6)])


def test_rewards_are_those_of_the_stage():
    dpo = score_pairs(RewardRule("dpo", PreferenceConfig(beta=0.5)), LOGPS, REFERENCE)
    assert [row["better_reward"] for row in dpo] == pytest.approx([1.0, -0.75, 0.5])
    assert [row["margin"] for row in dpo] == pytest.approx([1.5, -1.0, -0.25])
    assert [row["accuracy"] for row in dpo] == [100, 0, 0]
    assert [[name for name in row if name.startswith("accuracy_")] for row in dpo] == [
        ["accuracy_shorter"],
        ["accuracy_longer"],
        [],  # of the same length
    ]
    assert [row["accuracy"] for row in score_pairs(RewardRule("dpo", PreferenceConfig()), LOGPS, LOGPS)] == [50] * 3
    options = PreferenceConfig(beta=0.5, length_normalized=True)
    by_token = score_pairs(RewardRule("dpo", options), LOGPS, REFERENCE)
    assert by_token[0]["margin"] == pytest.approx(0.5 * (2 / 5 + 1 / 7))
    simpo = score_pairs(RewardRule("simpo", PreferenceConfig(beta=2.0)), LOGPS, None)
    assert simpo[1]["better_reward"] == pytest.approx(-2 * 31 / 12)
    assert "better_reference_logp" not in simpo[0]


def test_the_rule_is_that_of_the_run():
    def make(*settings):
        return load_config(None, ["model=m", "data=d", *settings])

    assert choose_rule(make("stage=dpo", "preference.beta=0.3"), True).describe() == "0.3 × log-ratio to the reference"
    rule = choose_rule(make("stage=simpo", "preference.beta=2"), True)
    assert rule.describe() == "2 × log-probability per token"
    assert choose_rule(make(), True).describe() == "0.1 × log-ratio to the reference"
    assert choose_rule(make(), False).describe() == "1 × log-probability per token"


def test_the_kl_is_the_mean_log_ratio_of_replies():
    summary, per_token = estimate_kl(LOGPS, REFERENCE)
    assert summary is not None
    assert (summary.mean, summary.rows) == (pytest.approx(0.5), 2)
    assert per_token == pytest.approx(1.0 / 10)
    assert estimate_kl(replace(LOGPS, replies=[]), REFERENCE) == (None, None)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A run of DPO on a tiny model, and the pairs that it was evaluated on."""
    from glmtune.preference import make_objective
    from glmtune.training.run import train

    folder = tmp_path_factory.mktemp("dpo")
    settings = {
        "training.max_steps": 4,
        "training.learning_rate": 2e-2,
        "training.report_to": "none",
        "training.logging_steps": 1,
        "data.packing": "false",
        "stage": "dpo",
        "model": tiny("chatglm3"),
        "data.train": _write(folder, _pairs(8)),
        "data.eval": _write(folder, _pairs(5), "held-out.json"),
        "output": folder / "run",
    }
    config = load_config(None, [f"{key}={value}" for key, value in settings.items()])
    train(config, objective=make_objective(config))
    return folder / "run", folder / "held-out.json"


def test_eval_of_a_run_agrees_with_its_training(run, glmtune_command):
    folder, held_out = run
    result = glmtune_command("eval", folder, "--data", held_out, "--max-new-tokens", 4)
    assert result.code == 0, result.err
    pairs = PairResult.load(folder / "eval" / "held-out" / "pairs.json")
    last = [entry for entry in RunDir(folder).read_metrics() if "eval_margin" in entry][-1]
    for name in ("margin", "better_reward", "worse_reward", "better_logp", "worse_logp"):
        assert pairs.scores[name].mean == pytest.approx(last[f"eval_{name}"], abs=1e-3), name
    assert pairs.scores["accuracy"].mean == pytest.approx(100 * last["eval_accuracy"])
    assert (pairs.pairs, pairs.dropped, pairs.is_sampled) == (5, 0, False)
    assert pairs.reference is not None
    assert pairs.reference.adapter is None
    assert pairs.kl is not None
    assert pairs.kl.rows == 5
    assert "--temperature 1 --top-p 1" in result.out
    rows = [json.loads(line) for line in (folder / "eval" / "held-out" / "pairs.jsonl").read_text("utf-8").splitlines()]
    assert [row["better"] for row in rows] == [BETTER * (1 + n % 2) for n in range(5)]
    assert rows[0]["prompt"] == [{"role": "user", "content": f"{QUESTION}0"}]
    page = (folder / "report.html").read_text("utf-8")
    assert "Better and worse answers" in page
    assert "较好与较差的回答" in page

    written = (folder / "eval" / "held-out" / "pairs.json").stat().st_mtime_ns
    again = glmtune_command("eval", folder, "--data", held_out, "--max-new-tokens", 4)
    assert again.code == 0, again.err
    assert (folder / "eval" / "held-out" / "pairs.json").stat().st_mtime_ns == written


def test_eval_against_another_reference(run, glmtune_command, tmp_path):
    """Against itself all rewards are 0; and what the run started from must be there."""
    folder, held_out = run
    words = ["eval", folder, "--data", held_out, "--max-new-tokens", 2, "--limit", 2, "--output", tmp_path / "eval"]
    assert glmtune_command(*words, "--reference", folder).code == 0
    pairs = PairResult.load(tmp_path / "eval" / "pairs.json")
    assert pairs.scores["margin"].mean == pytest.approx(0, abs=1e-6)
    assert pairs.kl is not None
    assert pairs.kl.mean == pytest.approx(0, abs=1e-6)

    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("adapter", "summary.json"):
        (moved / name).symlink_to(folder / name)
    text = (folder / "config.yaml").read_text("utf-8")
    assert "adapter: ''" in text
    (moved / "config.yaml").write_text(text.replace("adapter: ''", "adapter: /no/such/run"), encoding="utf-8")
    result = glmtune_command("eval", moved, "--data", held_out)
    assert result.code == 1
    assert "--reference PATH" in result.err


def test_eval_of_other_models_and_rows(run, tiny, glmtune_command, tmp_path):
    folder, held_out = run
    base = tiny("chatglm3")
    words = ["--data", held_out, "--max-new-tokens", 2, "--limit", 2, "--output", tmp_path / "eval"]
    refused = glmtune_command("eval", base, *words)
    assert refused.code == 1
    assert "--set data.preference=pairs" in refused.err
    assert "--stage" not in refused.err, "no advice on training"
    result = glmtune_command("eval", base, *words, "--set", "data.preference=pairs")
    assert result.code == 0, result.err
    assert "without a reference" in result.out
    assert PairResult.load(tmp_path / "eval" / "pairs.json").kl is None

    single = _write(tmp_path, [{"prompt": QUESTION, "response": BETTER}], "single.json")
    result = glmtune_command("eval", folder, "--data", single, "--max-new-tokens", 2, "--output", tmp_path / "single")
    assert result.code == 0, result.err
    assert "no pairs of answers, so replies alone are scored" in result.err
    assert not (tmp_path / "single" / "pairs.json").exists()


def test_how_rows_are_read_is_no_setting_of_the_stage(run, tmp_path):
    folder, _ = run
    assert read_settings(str(folder), ["data.preference=chosen"]).data.preference == "chosen"
    assert read_settings(str(tmp_path), ["data.preference=pairs"]).data.preference == "pairs"
    assert read_settings(str(folder), []).data.preference == "pairs"


def test_rows_that_are_no_pairs_are_counted(tiny, tmp_path):
    rows = [
        *_pairs(2),
        {"prompt": "一", "chosen": "好", "rejected": "好"},
        {"prompt": "二", "chosen": "好" * 90, "rejected": "好" * 91},
    ]
    config = load_config(None, ["model=m", "data=d", "data.max_target_length=40"])
    base = tiny("chatglm2")
    path = str(_write(tmp_path, rows))
    data = read_pairs(path, config.data, glmtune.detect_family(base), glmtune.load_tokenizer(base))
    assert (len(data.pairs), data.dropped, data.others) == (2, 1, 1)
    with pytest.raises(DataError, match=r"data\.preference=pairs"):
        read_eval_data(path, config.data, glmtune.detect_family(base), glmtune.load_tokenizer(base))


# --- win rates -------------------------------------------------------------------------------------------------------


def _play(rows, theta, phi, seed):
    """Rewards and lengths of two models, whose wins follow the regression's own law."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(20, 200, rows), generator.integers(20, 300, rows)
    longer = lengths[1] - lengths[0]
    shares = 1 / (1 + np.exp(-(theta + phi * np.tanh(longer / longer.std()))))
    wins = generator.random(rows) < shares
    return (np.zeros(rows), np.where(wins, 1.0, -1.0)), lengths


def test_the_length_controlled_win_rate_is_that_at_equal_length():
    rewards, lengths = _play(3000, 0.4, 2.0, 1)
    result = compute_win_rate(0, 1, rewards, lengths, resamples=200)
    assert result.rate.mean == pytest.approx(100 * (rewards[1] > 0).mean())
    assert result.controlled.mean == pytest.approx(100 / (1 + math.exp(-0.4)), abs=4)
    assert result.controlled.low < 100 / (1 + math.exp(-0.4)) < result.controlled.high
    assert result.rate.low > result.controlled.high, "length alone wins many rows here"
    assert result.length_effect == pytest.approx(2.0, abs=0.3)
    assert (result.wins, result.losses, result.ties) == (int((rewards[1] > 0).sum()), int((rewards[1] < 0).sum()), 0)


def test_the_regression_is_at_the_maximum_of_its_likelihood():
    rewards, lengths = _play(60, -0.3, 1.0, 2)
    wins = np.where(rewards[1] > 0, 1.0, 0.0)
    wins[:5] = 0.5
    terms = np.tanh((lengths[1] - lengths[0]) / (lengths[1] - lengths[0]).std())
    theta, phi = (float(value[0]) for value in fit_logistic(np.ones((1, 60)), wins, terms))

    def penalized(theta, phi):
        shares = 1 / (1 + np.exp(-(theta + phi * terms)))
        return (wins * np.log(shares) + (1 - wins) * np.log(1 - shares)).sum() - 0.005 * theta**2 - 0.5 * phi**2

    best = penalized(theta, phi)
    assert all(penalized(theta + x, phi + y) < best for x in (-0.01, 0, 0.01) for y in (-0.01, 0, 0.01) if x or y)


def test_win_rates_at_the_ends():
    won = compute_win_rate(0, 1, ([0.0] * 9, [1.0] * 9), ([5] * 9, [5] * 9), resamples=50)
    assert (won.rate.mean, won.wins) == (100, 9)
    assert 99 < won.controlled.mean <= 100
    assert won.length_effect == 0
    tied = compute_win_rate(0, 1, ([1.0] * 4, [1.0] * 4), ([5] * 4, [9] * 4), resamples=50)
    assert (tied.rate.mean, tied.ties) == (50, 4)
    assert tied.controlled.mean == pytest.approx(50)
    with pytest.raises(ValueError, match="at least one row"):
        compute_win_rate(0, 1, ([], []), ([], []))


class _LengthJudge:
    """Rewards the longest reply; stands for a reward model."""

    def __init__(self):
        self.rows = []

    def score_rows(self, rows, batch_size, on_done):
        self.rows = rows
        on_done(len(rows))
        return [float(len(row.messages[-1]["content"])) for row in rows]


def test_replies_are_judged_without_the_prefix_of_their_model(tmp_path, monkeypatch):
    judge = _LengthJudge()
    monkeypatch.setattr(judging, "load_reward_model", lambda path, **options: judge)

    def make_record(row, prefix, reply):
        prompt = [{"role": "system", "content": "短"}, {"role": "user", "content": f"{prefix}问{row}"}]
        return {"row": row, "where": f"a:{row}", "prompt": prompt, "tools": None, "prediction": reply}

    models = [[make_record(i, "", "好") for i in range(3)], [make_record(i, "请：", "好" * i) for i in range(3)]]
    (result,) = judge_replies("rm", models, ["", "请："], tmp_path)
    assert (result.wins, result.losses, result.ties) == (1, 1, 1)
    assert result.mean_lengths == [1, 1]
    assert [row.messages[1]["content"] for row in judge.rows] == ["问0", "问1", "问2"] * 2
    assert judge.rows[5].messages[-1] == {"role": "assistant", "content": "好好"}
    lines = [json.loads(line) for line in (tmp_path / "rewards.jsonl").read_text("utf-8").splitlines()]
    assert [line["rewards"] for line in lines] == [[1, 0], [1, 1], [1, 2]]


def test_an_exported_reward_model_is_a_judge(tiny, tmp_path):
    """What makes it one is its architecture: the same folder as a language model is none."""
    folder = tmp_path / "exported"
    shutil.copytree(tiny("chatglm3"), folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    with pytest.raises(ModelError, match="no reward model"):
        judging.require_reward_model(str(folder))
    config["architectures"] = ["GlmForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    judging.require_reward_model(str(folder))


def test_compare_refuses_a_judge_that_rewards_nothing(run, tiny, glmtune_command):
    folder, held_out = run
    result = glmtune_command("compare", tiny("chatglm3"), folder, "--data", held_out, "--judge", folder)
    assert result.code == 1
    assert "no reward model" in result.err


# --- curves and warnings ---------------------------------------------------------------------------------------------


def _entry(step, better, worse, rewards=(0.0, 0.0), prefix=""):
    names = ("better_logp", "worse_logp", "better_reward", "worse_reward")
    values = dict(zip(names, (better, worse, *rewards), strict=True))
    margin = rewards[0] - rewards[1]
    numbers = {**values, "margin": margin, "accuracy": 0.75}
    return {"step": step, "epoch": step / 10, **{f"{prefix}{name}": value for name, value in numbers.items()}}


DPO = {"stage": "dpo", "preference": {"beta": 0.1, "loss": "sigmoid", "length_normalized": False}}
FALLS = {
    "both fall, from where the reference was": (DPO, [_entry(10, -50.0, -70.0, (-0.5, -2.0), "eval_")], (-45.0, -50.0)),
    "the better one rises": (DPO, [_entry(10, -50.0, -70.0, (0.5, -2.0), "eval_")], None),
    "it falls by half a nat": (DPO, [_entry(10, -50.0, -70.0, (-0.05, -2.0), "eval_")], None),
    "held-out pairs decide": (
        DPO,
        [_entry(5, -9.0, -9.0, (-1.0, -1.0)), _entry(10, -50.0, -70.0, (0.5, -2.0), "eval_")],
        None,
    ),
    "without held-out pairs": (
        DPO,
        [_entry(i, -50.0 - i, -60.0 - i, (-0.1 * i, -0.2)) for i in (1, 2)],
        (-50.0, -52.0),
    ),
    "rewards per token say nothing of sums": (
        {**DPO, "preference": {"beta": 0.1, "loss": "ipo"}},
        [_entry(10, -50.0, -70.0, (-0.5, -2.0), "eval_")],
        None,
    ),
    "without a reference, the first evaluation is the start": (
        {"stage": "simpo", "preference": {"beta": 2.0}},
        [_entry(5, -50.0, -60.0, prefix="eval_"), _entry(10, -58.0, -65.0, prefix="eval_")],
        (-50.0, -58.0),
    ),
    "an infinite number": (DPO, [_entry(10, -math.inf, -70.0, (-0.5, -2.0), "eval_")], None),
    "supervised training": ({"stage": "sft"}, [{"step": 1, "loss": 2.0}], None),
}


@pytest.mark.parametrize("name", FALLS)
def test_both_answers_become_less_likely(name):
    config, metrics, better = FALLS[name]
    fall = find_answer_fall(metrics, config)
    assert (fall and fall.better) == (better and pytest.approx(better))


def test_the_warning_is_in_both_languages_and_fits_the_stage():
    entries = [_entry(5, -50.0, -60.0, prefix="eval_"), _entry(10, -58.0, -65.0, prefix="eval_")]
    fall = find_answer_fall(entries, {"stage": "simpo", "preference": {"beta": 2.0}})
    assert "from -50.0 to -58.0" in fall.describe("en")
    assert "preference.sft_weight" in fall.describe("en")
    assert "由 -50.0 变为 -58.0" in fall.describe("zh")
    assert "sft_weight" not in find_answer_fall(entries, {"stage": "orpo"}).describe("en"), "it has none"


def test_training_warns_once(tmp_path, capsys):
    run = RunDir(tmp_path / "run")
    run.root.mkdir()
    run.config.write_text(json.dumps({**DPO, "model": {"path": "m"}}), encoding="utf-8")
    callback = MetricsCallback(run, ProgressDisplay())
    control = TrainerControl()
    for step, rewards in ((1, (0.1, -0.2)), (2, (-0.5, -2.0)), (3, (-0.6, -2.0))):
        state = TrainerState(global_step=step, max_steps=3, is_world_process_zero=True)
        entry = _entry(step, -50.0, -70.0, rewards, "eval_")
        callback.on_log(None, state, control, {k: v for k, v in entry.items() if k.startswith("eval_")})
        assert " ".join(capsys.readouterr().out.split()).count("Both answers became less likely") == (step == 2)


def test_the_report_of_a_run_has_curves_and_the_warning(tmp_path):
    folder = folders.write_run(tmp_path / "run")
    metrics = [_entry(i, -50.0 - i, -60.0 - 2 * i, (-0.1 * i, -0.2 * i)) for i in range(1, 20)]
    metrics += [_entry(i, -52.0 - i, -61.0 - 2 * i, (-0.1 * i, -0.2 * i), "eval_") for i in (10, 20)]
    folders.write_lines(folder / "metrics.jsonl", [{"loss": 0.5, **entry} for entry in metrics[:19]] + metrics[19:])
    config = (folder / "config.yaml").read_text("utf-8")
    (folder / "config.yaml").write_text(f"{config}stage: dpo\npreference: {{beta: 0.1, loss: sigmoid}}\n", "utf-8")
    score = {"mean": 75.0, "low": 50.0, "high": 100.0, "rows": 4}
    names = ("accuracy", "margin", "a_score_of_tomorrow")
    pairs = {"pairs": 4, "reward": "0.1 × log-ratio", "scores": dict.fromkeys(names, score), "kl": score}
    folders.write_json(folder / "eval" / "dev" / "pairs.json", pairs)
    lines = [
        {
            "where": f"p:{i}",
            "prompt": [{"role": "user", "content": folders.NASTY}],
            "better": f"优{i}",
            "worse": f"劣{i}",
        }
        | {"margin": i - 1.5, "better_reward": 1.0, "worse_reward": 0.5}
        for i in range(4)
    ]
    folders.write_lines(folder / "eval" / "dev" / "pairs.jsonl", lines)
    page = render_page(read_contents(folder), "en")
    assert folders.NASTY not in page
    for word in (
        "Log-probabilities of answers",
        "回答的对数概率",
        "Reward accuracy",
        "Both answers became less likely",
    ):
        assert word in page, word
    assert "两种回答的概率都在下降" in page
    assert "mean over pairs or answers" in page
    assert page.index("Pairs that it gets most wrong") < page.index("优0") < page.index("优3")
    assert "a_score_of_tomorrow" in page


def test_the_report_of_a_comparison_has_win_rates(tmp_path):
    folder = folders.write_comparison(tmp_path / "compare")
    rate = {"mean": 61.25, "low": 55.0, "high": 66.0, "rows": 40}
    win = {"a": 0, "b": 1, "wins": 24, "losses": 15, "ties": 1, "rate": rate, "controlled": {**rate, "mean": 52.125}}
    win |= {"length_effect": 1.5, "mean_lengths": [80.0, 120.0], "reward_difference": 0.5}
    content = json.loads((folder / "comparison.json").read_text("utf-8"))
    folders.write_json(folder / "comparison.json", {**content, "judge": "/runs/rm", "win_rates": [win]})
    page = render_page(read_contents(folder), "en")
    assert "Win rates" in page
    assert '<data value="52.125">52.1</data>' in page
    assert "reward model rm" in page


def test_advice_against_forgetting_fits_the_stage():
    config = load_config(None, ["model=m", "data=d", "stage=dpo", "preference.beta=0.2"])
    advice = " ".join(suggest_remedies("warn", config, 100))
    assert "--set preference.beta=0.4" in advice
    assert "--set preference.sft_weight=0.2" in advice
    assert "replay" not in advice, "pairs cannot be replayed"
    orpo = " ".join(suggest_remedies("warn", load_config(None, ["model=m", "data=d", "stage=orpo"]), 100))
    assert "replay" not in orpo
    assert "preference" not in orpo
