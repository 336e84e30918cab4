"""The forgetting probe: KL and losses are what they are called, a ruined run fails and a mild one passes, replay."""

from __future__ import annotations

import json
import math
import weakref
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from glmtune.config import ForgetConfig, load_config
from glmtune.data.encoding import EncodedRow
from glmtune.errors import ConfigError, DataError, ModelError, RunError
from glmtune.evaluation import model_switcher as staging
from glmtune.evaluation.forgetting.forget import measure_forgetting, open_pair, read_limits
from glmtune.evaluation.forgetting.kl import count_targets, measure_divergence, trace_tokens
from glmtune.evaluation.forgetting.probe import CATEGORIES, load_probe
from glmtune.evaluation.forgetting.probing import ForgettingProbe, spread_items
from glmtune.evaluation.forgetting.verdict import BothSides, judge_forgetting, suggest_remedies
from glmtune.families import IGNORE_INDEX
from glmtune.generation.load import load_for_generation
from glmtune.methods.tuned_model import load_with_adapter
from glmtune.run_dir import RunDir
from glmtune.training.resume import resolve_paths
from glmtune.training.training_data import prepare_data
from glmtune.utils.console import use_console

SHORT = ForgetConfig(max_new_tokens=6)
# Some dozen steps of so high a rate that nothing of the base is left.
RUINED = ("training.learning_rate=0.05", "training.max_steps=30", "lora.rank=16", "lora.targets=all-linear")
MILD = ("training.learning_rate=1e-7", "training.max_steps=2")


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """`trained(family, "key=value", ...)`: a finished run on eight advertisements, made once."""
    from command import make_runner

    made = {}

    def run(family, *settings):
        if (family, settings) not in made:
            folder = tmp_path_factory.mktemp("runs") / "run"
            data = folder.parent / "train.json"
            from demo_corpus.corpus import make_adgen_rows

            lines = [json.dumps(row, ensure_ascii=False) for row in make_adgen_rows(8, seed=1)]
            data.write_text("\n".join(lines) + "\n", "utf-8")
            fast = ("training.gradient_accumulation_steps=1", "data.eval_fraction=0", "lora.dropout=0", *settings)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("GLMTUNE_CACHE", str(folder.parent / "cache"))
                capture = type("Capture", (), {"readouterr": lambda self: type("Two", (), {"out": "", "err": ""})()})()
                result = make_runner(patch, capture)(
                    *("train", "--model", tiny(family), "--data", data, "--output", folder),
                    *(part for setting in fast for part in ("--set", setting)),
                )
            assert result.code == 0
            made[family, settings] = RunDir(folder)
        return made[family, settings]

    return run


def _result(folder):
    return json.loads((folder / "forgetting.json").read_text("utf-8"))


def _rows(opened, texts):
    """Texts as replies to one question, as the probe would read them."""
    prompt = opened.family.encode_prompt([{"role": "user", "content": "你好"}], opened.tokenizer)
    answers = [opened.family.encode_answer({"role": "assistant", "content": text}, opened.tokenizer) for text in texts]
    rows = [opened.family.build_row(prompt, ids) for ids in answers]
    return [EncodedRow(row.input_ids, row.labels, row.context, i, "") for i, row in enumerate(rows)]


def _log_probabilities(model, row):
    """Of every target of a row, (N, V), by a plain forward."""
    start = row.labels.count(IGNORE_INDEX)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.input_ids]), attention_mask=torch.ones(1, len(row.input_ids))).logits
    return logits[0, start - 1 : -1].float().log_softmax(-1)


# Numbers


@pytest.mark.parametrize("family", ["chatglm", "chatglm3"])
@pytest.mark.parametrize("method", ["lora", "ptuning"])
def test_divergence_and_losses_are_those_of_a_direct_computation(trained, tiny, family, method):
    settings = ("method=ptuning", "ptuning.num_virtual_tokens=4") if method == "ptuning" else ()
    run = trained(family, "training.learning_rate=0.02", "training.max_steps=8", *settings)
    base, tuned = load_for_generation(str(tiny(family))), load_for_generation(str(run.root))
    rows = _rows(base, ["一条短裙", "版型宽松的上衣，简约又显瘦，适合秋天", "a"])
    arguments = (base.tokenizer, base.family)
    before = trace_tokens(base.model, *arguments, rows, batch_size=2)
    after = measure_divergence(tuned.model, *arguments, before, batch_size=3)

    kl, losses = [], ([], [])
    for row in rows:
        ours, theirs = (_log_probabilities(opened.model, row) for opened in (base, tuned))
        kl += (ours.exp() * (ours - theirs)).sum(-1).tolist()
        targets = [label for label in row.labels if label != IGNORE_INDEX]
        for side, log_p in zip(losses, (ours, theirs), strict=True):
            side += [-float(log_p[place, token]) for place, token in enumerate(targets)]
    assert len(kl) == sum(map(count_targets, rows))
    assert after.kl == pytest.approx(sum(kl) / len(kl), rel=1e-3)
    assert after.kl > 1e-3
    assert before.loss == pytest.approx(sum(losses[0]) / len(kl), rel=1e-4)
    assert after.loss == pytest.approx(sum(losses[1]) / len(kl), rel=1e-4)


def test_a_model_does_not_diverge_from_itself(tiny):
    opened = load_for_generation(str(tiny("glm4")))
    rows = _rows(opened, ["一条短裙", "上衣"])
    before = trace_tokens(opened.model, opened.tokenizer, opened.family, rows)
    assert measure_divergence(opened.model, opened.tokenizer, opened.family, before).kl == pytest.approx(0, abs=1e-7)


def test_vocabularies_of_different_sizes_are_refused(tiny):
    """A tuned model may have tokens that its base has not, but not fewer."""
    one, other = (load_for_generation(str(tiny("chatglm2"))) for _ in range(2))
    head = other.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight[:-8])
    before = trace_tokens(one.model, one.tokenizer, one.family, _rows(one, ["一"]))
    with pytest.raises(ModelError, match="differ in size"):
        measure_divergence(other.model, one.tokenizer, one.family, before)


def test_a_reply_of_no_tokens_counts_for_nothing(tiny):
    """A base that ends at once, cut by the length, has no target to compare on."""
    opened = load_for_generation(str(tiny("chatglm3")))
    prompt = opened.family.encode_prompt([{"role": "user", "content": "你好"}], opened.tokenizer)
    before = trace_tokens(
        opened.model, opened.tokenizer, opened.family, [EncodedRow(prompt, [IGNORE_INDEX] * len(prompt), 0, 0, "")]
    )
    assert math.isnan(before.loss)


# The verdict


def _sides(**changes):
    right = [True] * 80 + [False] * 20
    same = BothSides((right, right), ([False] * 100, [False] * 100), (0.3, 0.3), 0.05)
    return replace(same, **changes)


def _share(count):
    return [True] * count + [False] * (100 - count)


@pytest.mark.parametrize(
    ("changes", "verdict", "said"),
    [
        ({}, "pass", ""),
        ({"kl": 0.6}, "warn", "0.60 nats per token"),
        ({"kl": 2.5}, "fail", "2.50 nats per token"),
        ({"kl": math.nan}, "fail", "not a finite number"),
        ({"reply_loss": (0.3, 1.0)}, "warn", "rose by 0.70, from 0.30 to 1.00"),
        ({"reply_loss": (0.3, math.inf)}, "fail", "not a finite number"),
        ({"right": (_share(80), _share(72))}, "warn", "fell by 8.0 points, from 80.0 % to 72.0 %"),
        ({"right": (_share(80), _share(60))}, "fail", "fell by 20.0 points"),
        ({"right": (_share(60), _share(80))}, "pass", ""),
        ({"broken": (_share(0), _share(6))}, "warn", "rose by 6.0 points"),
        ({"broken": (_share(0), _share(12))}, "fail", "rose by 12.0 points"),
        ({"broken": (_share(12), _share(0))}, "pass", ""),
        ({"kl": 0.6, "broken": (_share(0), _share(12))}, "fail", "0.60 nats"),
    ],
)
def test_the_verdict_is_the_gravest_of_the_numbers(changes, verdict, said):
    found, reasons = judge_forgetting(_sides(**changes), ForgetConfig())
    assert found == verdict
    assert said in " ".join(reasons)
    assert bool(reasons) == (verdict != "pass")


def test_a_loss_of_answers_that_chance_explains_is_none():
    """Ten questions fewer answered and eight more: two points lost by a coin's throw are not held against a model."""
    base = [True] * 50 + [False] * 50
    tuned = [False] * 28 + [True] * 22 + [True] * 22 + [False] * 28
    assert sum(base) - sum(tuned) == 6
    assert judge_forgetting(_sides(right=(base, tuned)), ForgetConfig())[0] == "pass"


def test_thresholds_are_the_configs():
    assert judge_forgetting(_sides(kl=0.6), ForgetConfig(kl_warn=0.7))[0] == "pass"
    assert judge_forgetting(_sides(kl=0.6), ForgetConfig(kl_fail=0.55))[0] == "fail"


def test_advice_names_numbers_of_the_run():
    config = load_config(None, ["model=m", "data=d", "training.learning_rate=1e-3", "lora.rank=16", "lora.alpha=32"])
    assert suggest_remedies("pass", config, 400) == []
    told = " ".join(suggest_remedies("fail", config, 400))
    assert "--set replay.data=GENERAL.jsonl --set replay.share=0.3" in told
    assert "from 0.001 to 0.0002" in told
    assert "100 instead of 400" in told
    assert "--set lora.rank=4 --set lora.alpha=8" in told
    assert "from 0.001 to 0.0005" in " ".join(suggest_remedies("warn", config, 400))
    config.replay.data = "general.jsonl"
    assert "--set replay.share=0.2 instead of 0.1" in suggest_remedies("warn", config, 400)[0]
    assert "lower learning rate" in " ".join(suggest_remedies("warn", None))


# The command


def test_an_overtrained_run_fails_with_exit_code_3(trained, glmtune_command):
    run = trained("chatglm3", *RUINED)
    result = glmtune_command("forget", run.root, "--limit", 12, "--set", "forget.max_new_tokens=6")
    assert result.code == 3, result.err
    found = _result(run.root)
    assert found["kind"] == "forgetting"
    assert found["verdict"] == "fail"
    assert found["kl"] > 0.5
    assert "(2 fails)" in " ".join(found["reasons"])
    assert found["items"] == 12
    assert found["thresholds"]["max_new_tokens"] == 6
    assert found["tuned"]["adapter"] == str(run.adapter)
    assert found["base"]["adapter"] is None
    assert found["base"]["fingerprint"] == found["tuned"]["fingerprint"]
    assert set(found["accuracy"]) == {"base", "tuned", "by_category", "by_language"}
    assert set(found["accuracy"]["by_category"]) == set(CATEGORIES)
    assert found["reply_loss"]["tuned"] > found["reply_loss"]["base"]
    assert set(found["degenerate"]["tuned"]) == {"loop", "unk", "empty"}
    assert any("replay.data" in line for line in found["advice"])
    assert any("--set training.max_steps=7" in line for line in found["advice"])
    assert found["examples"][0]["base"] != found["examples"][0]["tuned"]
    assert "FAIL" in result.out
    assert (run.root / "report.html").is_file()


def test_a_mild_run_passes(trained, glmtune_command, tmp_path):
    run = trained("chatglm3", *MILD)
    result = glmtune_command(
        *("forget", run.adapter, "--limit", 12, "--output", tmp_path / "probe"),
        *("--set", "forget.max_new_tokens=6", "--questions", "zh"),
    )
    assert result.code == 0, result.err
    found = _result(tmp_path / "probe")
    assert found["verdict"] == "pass"
    assert found["reasons"] == found["advice"] == []
    assert 0 <= found["kl"] < 0.01
    assert list(found["accuracy"]["by_language"]) == ["zh"]
    assert (tmp_path / "probe" / "report.html").is_file()
    assert not (run.root / "forgetting.json").exists()


def test_a_whole_model_is_held_against_its_base_and_never_beside_it(trained, tiny, monkeypatch):
    run = trained("chatglm2", "method=full", "training.learning_rate=0.01", "training.max_steps=12")
    tuned, base = open_pair(str(run.root))
    assert tuned.target.adapter is None
    assert base.base.folder == tiny("chatglm2")
    loaded, alive = [], []

    def load(found, *args, **kwargs):
        loaded.append(found.folder)
        assert [model() for model in alive] == [None] * len(alive)
        model = load_with_adapter(found, *args, **kwargs)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(staging, "load_with_adapter", load)
    result = measure_forgetting(tuned, base, spread_items(load_probe(), 8), SHORT)
    assert loaded == [tiny("chatglm2"), run.model]
    assert result.kl > 0.01
    assert result.base.fingerprint != result.tuned.fingerprint


def test_the_probe_knows_no_prefix(trained):
    """What a run puts in front of its questions is no part of general ones: the base is asked without it."""
    plain = trained("chatglm3", *MILD)
    tuned, base = open_pair(str(plain.root))
    prefixed = replace(tuned, target=replace(tuned.target, prefix="类型："))
    items = spread_items(load_probe(), 4)
    one, other = (measure_forgetting(each, base, items, SHORT) for each in (tuned, prefixed))
    assert one == other


def test_questions_are_spread_over_all_kinds():
    items = load_probe()
    some = spread_items(items, 28)
    assert len({item.id for item in some}) == 28
    assert {item.category for item in some} == set(CATEGORIES)
    assert {item.lang for item in some} == {"zh", "en"}
    assert spread_items(items, 10_000) == spread_items(items, None) == items


# Bad input


def test_what_cannot_be_probed_is_refused(tiny, trained, tmp_path):
    with pytest.raises(ConfigError, match="a full model whose base is unknown"):
        open_pair(str(tiny("chatglm3")))
    with pytest.raises(RunError, match="was trained on a base with fingerprint"):
        open_pair(str(trained("chatglm3", *MILD).adapter), base=str(tiny("glm4")))
    tuned, base = open_pair(str(tiny("chatglm3")), base=str(tiny("chatglm")))
    with pytest.raises(RunError, match="was not tuned from"):
        measure_forgetting(tuned, base, load_probe(), SHORT)
    with pytest.raises(ConfigError, match="no questions"):
        ForgettingProbe([], SHORT, 8)


def test_settings_of_the_probe(trained, glmtune_command):
    run = trained("chatglm3", *MILD)
    assert read_limits(str(run.root), ["forget.kl_warn=0.25"]) == ForgetConfig(kl_warn=0.25)
    config = run.config.read_text("utf-8")
    assert "kl_warn: 0.5" in config
    result = glmtune_command("forget", run.root, "--set", "data.max_length=9")
    assert result.code == 1
    assert "forget.* with accuracy_warn" in result.err
    result = glmtune_command("forget", run.root, "--set", "forget.kl_wran=9")
    assert "Did you mean kl_warn?" in result.err


# Replay


@pytest.fixture
def prepared(tiny, adgen_file, tmp_path):
    """`prepared("key=value", ...)`: the rows of a run on 40 advertisements, what was said, and the general file."""
    from glmtune.families import detect_family
    from glmtune.models.tokenizers import load_tokenizer

    general = tmp_path / "general.jsonl"
    rows = [{"instruction": f"第{i}个问题？", "output": f"第{i}个回答。"} for i in range(12)]
    general.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    data = adgen_file(40)
    folder = tiny("chatglm3")

    def prepare(*settings):
        console = Console(record=True, quiet=False, file=open("/dev/null", "w"), width=300)  # noqa: SIM115
        config = load_config(None, [f"model={folder}", f"data={data}", "data.eval_fraction=0.1", *settings])
        with use_console(console):
            data_of_run = prepare_data(config, detect_family(folder), load_tokenizer(folder))
        return data_of_run, console.export_text()

    prepare.general = general
    return prepare


def _places(dataset):
    return [dataset.rows[row].where for block in dataset.blocks for row in block]


@pytest.mark.parametrize("packing", ["true", "false"])
def test_replayed_rows_have_their_share_of_the_training_rows(prepared, packing):
    general = prepared.general
    plain, _ = prepared(f"data.packing={packing}")
    mixed, said = prepared(f"data.packing={packing}", f"replay={general}", "replay.share=0.1")
    places = _places(mixed.train)
    replayed = [place for place in places if place.startswith(str(general))]
    assert (len(replayed), len(places)) == (4, 40)
    assert sorted(set(places) - set(replayed)) == sorted(_places(plain.train))
    assert _places(mixed.eval) == _places(plain.eval)
    assert len(set(replayed)) == 4
    assert mixed.summary["replay_rows"] == 4
    assert mixed.summary["train_rows"] == 40
    assert "Replay: 4 general rows among 40 training rows (10.0 %), out of 12." in said
    assert mixed.describe_row(mixed.train.blocks[0][0]) == places[0]


def test_replay_is_drawn_by_the_seed_and_repeats_when_it_must(prepared):
    general = prepared.general
    half = (f"replay={general}", "replay.share=0.5")
    places = _places(prepared(*half)[0].train)
    replayed = [place for place in places if place.startswith(str(general))]
    assert len(replayed) == 36
    assert {replayed.count(place) for place in replayed} == {3}
    few = (f"replay={general}", "replay.share=0.1")
    drawn = [
        sorted(_places(prepared(*few, f"training.seed={seed}", "data.eval_fraction=0")[0].train)) for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_replayed_rows_keep_their_own_columns_and_questions(prepared, tiny):
    general = prepared.general
    settings = ("data.prefix=类型：", "data.columns.prompt=content", "data.columns.response=summary")
    mixed, _ = prepared(*settings, f"replay={general}", "replay.share=0.1")
    opened = load_for_generation(str(tiny("chatglm3")))
    texts = {}
    for block in mixed.train.blocks:
        for number in block:
            row = mixed.train.rows[number]
            texts[row.where] = opened.tokenizer.decode(row.input_ids)
    for where, text in texts.items():
        assert ("类型：" in text and "个问题" not in text) != where.startswith(str(general))


def test_a_resumed_run_keeps_its_replay(trained, glmtune_command, prepared, adgen_file, tiny, tmp_path):
    data, general = adgen_file(8, "few.json"), prepared.general
    common = ("train", "--model", tiny("chatglm3"), "--data", data, "--output", tmp_path / "run")
    steps = ("--set", "training.max_steps=2", "--set", "training.save_steps=1")
    first = glmtune_command(*common, *steps, "--set", f"replay={general}", "--set", "replay.share=0.3")
    assert first.code == 0, first.err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["data"]["replay_rows"] == 3
    more = ("--resume", "--set", "training.max_steps=3", "--set", "training.save_steps=1")
    other = glmtune_command(*common, *more, "--set", f"replay={general}", "--set", "replay.share=0.2")
    assert other.code == 1
    assert "replay settings cannot change" in other.err
    assert "share 0.3 to 0.2" in other.err
    general.write_text(general.read_text("utf-8").replace("第1个", "第一个"), "utf-8")
    changed = glmtune_command(*common, *more, "--set", f"replay={general}", "--set", "replay.share=0.3")
    assert "the data files are not what they were" in changed.err


def test_what_cannot_be_replayed_is_refused(prepared, tmp_path, glmtune_command, tiny, adgen_file):
    result = glmtune_command(
        *("train", "--model", tiny("chatglm3"), "--data", adgen_file(4, "few.json"), "--output", tmp_path / "run"),
        *("--set", f"replay={prepared.general}", "--set", "replay.share=1"),
    )
    assert "replay.share is 1.0; it must be above 0 and below 1" in result.err
    with pytest.raises(DataError, match="no-such"):
        prepared("replay=no-such.jsonl")


def test_the_replay_file_is_found_from_everywhere(tmp_path, monkeypatch):
    (tmp_path / "general.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    config = resolve_paths(load_config(None, ["model=m", "data=d", "replay=general.jsonl"]))
    assert config.replay.data == str(tmp_path / "general.jsonl")
