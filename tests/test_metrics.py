"""Scores of replies: the published definitions to the digit, bad texts, loops, tool calls, intervals."""

from __future__ import annotations

import os
import subprocess
import sys

import jieba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_chinese import Rouge

from glmtune.evaluation.metrics import (
    compute_distinct,
    compute_overlap,
    compute_repeated_share,
    has_repeated_tail,
    measure_variety,
    score_pair,
    tokenize_words,
)
from glmtune.evaluation.scoring import score_tools
from glmtune.evaluation.statistics import compare_by_bootstrap, summarize_scores
from glmtune.families import ToolCall

OVERLAPS = ["bleu4_characters", "bleu4_words", "rouge_1", "rouge_2", "rouge_l"]
SHIRT = "这件衬衫的款式非常宽松，利落的线条可以很好地隐藏身材上的小缺点，穿在身上有着很好的显瘦效果。"
PAIRS = [
    (SHIRT, SHIRT),
    ("这件衬衫版型宽松，线条利落，穿着显瘦。领口的抽绳很可爱！", SHIRT),
    ("百褶裙的设计优雅大方，适合春天穿。", SHIRT),
    ("第一行。\n\n第二行？他说：“好的。”然后走了……", "第一行。\n第二行，他说：“好的。”就走了……再见"),
    ("The cat sat on the mat.", "The cat is sitting on the mat."),
    ("价格是 99.5 元 (about $14)", "价格为99.5元，约合14美元"),
    ("好", "好"),
    ("好", SHIRT),
    ("。", "！"),
]


def published(prediction, reference):
    """The scores by the lines of ChatGLM-6B's evaluation script, the libraries called the way it calls them."""
    jieba.setLogLevel(60)
    hypothesis, expected = list(jieba.cut(prediction)), list(jieba.cut(reference))
    rouge = Rouge().get_scores(" ".join(hypothesis), " ".join(expected))[0]
    smooth = SmoothingFunction().method3
    scores = {
        "bleu4_characters": sentence_bleu([list(reference)], list(prediction), smoothing_function=smooth),
        "bleu4_words": sentence_bleu([expected], hypothesis, smoothing_function=smooth),
        "rouge_1": rouge["rouge-1"]["f"],
        "rouge_2": rouge["rouge-2"]["f"],
        "rouge_l": rouge["rouge-l"]["f"],
    }
    return {name: round(score * 100, 4) for name, score in scores.items()}


@pytest.mark.parametrize(("prediction", "reference"), PAIRS)
def test_the_published_definition(prediction, reference):
    assert compute_overlap(prediction, reference) == published(prediction, reference)


@settings(max_examples=150, deadline=None)
@given(*[st.text("我们你好的是猫ab c1\n。，？！”…. ", max_size=40)] * 2)
def test_the_published_definition_on_any_text(prediction, reference):
    if prediction.strip() and reference.strip():
        assert compute_overlap(prediction, reference) == published(prediction, reference)


def test_scores_that_can_be_worked_out_by_hand():
    same = score_pair(SHIRT, SHIRT)
    assert [round(same[name], 2) for name in OVERLAPS] == [100] * 5
    # 4 of 5 characters, then 3 of 4 pairs, 2 of 3 triples, 1 of 2 fours; the same length, so no penalty.
    assert compute_overlap("一二三四六", "一二三四五")["bleu4_characters"] == pytest.approx(100 * 0.2**0.25, abs=1e-4)


def test_bleu_over_characters_is_not_bleu_over_words():
    scores = compute_overlap(*PAIRS[1])
    assert scores["bleu4_characters"] > scores["bleu4_words"] > 0


@pytest.mark.parametrize("prediction", ["", "   ", "\n\n", "\u3000"])
def test_a_prediction_without_a_character_scores_0_and_is_counted(prediction):
    scores = score_pair(prediction, SHIRT)
    assert [scores[name] for name in OVERLAPS] == [0] * 5
    assert (scores["exact_match"], scores["length_ratio"], scores["empty"]) == (0, 0, 100)
    summary = summarize_scores([scores, score_pair(SHIRT, SHIRT)])
    assert (summary.empty_predictions, summary.scores["empty"].mean) == (1, 50)


@pytest.mark.parametrize(
    "prediction", ["。", "……", "？！", "a", "\ud83d", "好\udc00吗", "\u200b", "\x00", "🙂", "<unk>" * 9]
)
@pytest.mark.parametrize("reference", [SHIRT, "。", "a", "\ud83d", ""])
def test_odd_texts_get_finite_scores(prediction, reference):
    scores = score_pair(prediction, reference)
    assert all(np.isfinite(value) for value in scores.values())
    assert all(0 <= scores[name] <= 100 for name in OVERLAPS)


def test_an_empty_reference_has_no_length_ratio():
    assert "length_ratio" not in score_pair("好", " ")


def test_exact_match_ratio_and_truncation():
    scores = score_pair(" 好的\n", "好的", truncated=True)
    assert (scores["exact_match"], scores["length_ratio"], scores["truncated"]) == (100, 1, 100)
    scores = score_pair("好的好", "好的")
    assert (scores["exact_match"], scores["length_ratio"], scores["truncated"]) == (0, 1.5, 0)


def test_words_are_whole_and_english_is_cut_at_spaces():
    text = "The model tunes 衬衫 well.\n\ud800"
    assert "".join(tokenize_words(text)) == text
    assert tokenize_words("The model") == ["The", " ", "model"]


def test_the_first_words_come_quietly_from_many_threads(tmp_path):
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from glmtune.evaluation.metrics import tokenize_words\n"
        "cuts = list(ThreadPoolExecutor(8).map(tokenize_words, ['我来到北京清华大学'] * 8))\n"
        "assert cuts == [['我', '来到', '北京', '清华大学']] * 8, cuts\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path), "TEMP": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("我觉得很好，很好，很好，很好，", True),
        ("我觉得很好，很好，很好，很好，很", True),  # cut within the unit
        ("我觉得很好，很好，很好，", False),  # three times
        ("It is good. It is good.\nIt is good. It is good.", True),
        ("哈" * 15, False),
        ("哈" * 16, True),
        ("共1000000元", False),
        (SHIRT, False),
        (SHIRT * 4, True),
        ("很好，" * 9 + SHIRT, False),  # it came out of it
        ("", False),
    ],
)
def test_a_tail_that_repeats(text, loop):
    assert has_repeated_tail(text) is loop
    assert score_pair(text, SHIRT)["repeated_tail"] == 100 * loop


def test_runs_of_words_that_stood_before():
    assert compute_repeated_share("a b c d e f g h") == 0
    assert compute_repeated_share("a b c d a b c d") == pytest.approx(1 / 5)  # abcd, bcda, cdab, dabc, abcd
    assert compute_repeated_share("太短") == 0


def test_distinct_counts_over_all_replies_together():
    assert compute_distinct(["好好", "好的"], 1) == 2 / 4
    assert compute_distinct(["好好", "好的"], 2) == 1  # 好好, 好的; no pair across two replies
    assert compute_distinct(["好好", "好好"], 2) == 1 / 2
    assert compute_distinct(["", " "], 1) == 0
    assert measure_variety(["好好", "好好"]) == {"distinct_1": 25, "distinct_2": 50}


def call(name="weather", **arguments):
    return ToolCall(name, arguments)


@pytest.mark.parametrize(
    ("expected", "predicted", "name", "exact", "keys"),
    [
        ([call(city="北京", days=3)], [call(city="北京 ", days=3.0)], 100, 100, 100),
        ([call(city="北京", days=3)], [call(city="北京", days=2)], 100, 0, 50),
        ([call(city="北京")], [call(city="北京", days=2)], 100, 0, 50),  # an argument too many
        ([call(city="北京")], [call("news", city="北京")], 0, 0, 0),
        ([call()], [call()], 100, 100, 100),
        ([call(), call("news")], [call()], 50, 50, 50),  # a call too few
        ([call()], [call(), call("news")], 50, 50, 50),  # and one too many
        ([call(where={"a": [1, "x"]})], [call(where={"a": [1, "x "]})], 100, 100, 100),
        ([call(where={"a": [1, "x"]})], [call(where={"a": [1]})], 100, 0, 0),
        ([call(flag=True)], [call(flag=1)], 100, 0, 0),
        ([], [call()], 0, 0, 0),
    ],
)
def test_tool_calls(expected, predicted, name, exact, keys):
    scores = score_tools(expected, predicted)
    assert (scores["tool_name"], scores["tool_arguments"], scores["tool_argument_keys"]) == (name, exact, keys)
    assert scores["tool_decision"] == (100 if expected else 0)


def test_a_call_that_cannot_be_read_is_a_wrong_call():
    scores = score_tools([call()], [], problem="not a call")
    assert scores == {
        "tool_decision": 100,
        "tool_parse_failure": 100,
        "tool_name": 0,
        "tool_arguments": 0,
        "tool_argument_keys": 0,
    }
    assert score_tools([], [], problem="not a call")["tool_name"] == 0


def test_rightly_no_call_has_no_name_to_score():
    assert score_tools([], []) == {"tool_decision": 100, "tool_parse_failure": 0}
    assert score_tools([call()], [])["tool_decision"] == 0


def test_means_and_intervals():
    values = np.random.default_rng(7).normal(40, 10, size=2000)
    score = summarize_scores([{"rouge_l": value} for value in values]).scores["rouge_l"]
    error = values.std() / len(values) ** 0.5
    assert score.mean == pytest.approx(values.mean())
    assert score.low == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
    assert score.high == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)


def test_a_score_is_averaged_over_the_rows_that_have_it():
    summary = summarize_scores([{"a": 1.0}, {"a": 3.0, "b": 10.0}, {"a": 2.0}])
    assert (summary.rows, list(summary.scores)) == (3, ["a", "b"])
    assert (summary.scores["a"].mean, summary.scores["a"].rows) == (2, 3)
    assert summary.scores["b"] == type(summary.scores["b"])(mean=10, low=10, high=10, rows=1)


def test_one_row_no_row_and_equal_rows():
    one = summarize_scores([score_pair("好", "好的")])
    assert all(score.low == score.mean == score.high for score in one.scores.values())
    assert summarize_scores([]).scores == {}
    equal = summarize_scores([{"a": 0.1}] * 100).scores["a"]
    assert equal.low <= equal.mean <= equal.high  # to the last bit: rounding alone breaks it here
    assert equal.high - equal.low < 1e-12


def test_the_seed_decides_the_interval():
    rows = [{"a": float(i % 17)} for i in range(100)]
    assert summarize_scores(rows) == summarize_scores(rows)
    assert summarize_scores(rows) != summarize_scores(rows, seed=1)


def test_draws_in_several_parts_are_as_good(monkeypatch):
    rows = [{"a": float(i % 17)} for i in range(100)]
    whole = summarize_scores(rows).scores["a"]
    monkeypatch.setattr("glmtune.evaluation.statistics._AT_ONCE", 150)
    assert summarize_scores(rows).scores["a"] == whole


def test_equal_models_do_not_differ():
    scores = [3.0, 5.0, 8.0]
    difference = compare_by_bootstrap(scores, scores)
    assert (difference.mean, difference.low, difference.high, difference.p) == (0, 0, 0, 1)
    assert (difference.wins, difference.losses, difference.ties) == (0, 0, 3)


def test_a_better_model_is_told_from_luck():
    noise = np.random.default_rng(3).normal(size=(2, 400))
    luck = compare_by_bootstrap(noise[0], noise[1])
    assert luck.low < 0 < luck.high
    assert luck.p > 0.05
    better = compare_by_bootstrap(noise[0], noise[0] + 0.3 + 0.5 * noise[1])
    assert better.low > 0
    assert better.p < 0.01
    assert better.wins > better.losses > 0
    worse = compare_by_bootstrap(noise[0] + 0.3 + 0.5 * noise[1], noise[0])
    assert worse.mean == pytest.approx(-better.mean)
    assert worse.p == better.p


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0])])
def test_pairs_need_the_same_rows(a, b):
    with pytest.raises(ValueError, match="same rows"):
        compare_by_bootstrap(a, b)
