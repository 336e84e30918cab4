"""Preference tuning as other projects write it: entries of dataset_info.json, YAML files and command lines."""

from __future__ import annotations

import json

import pytest
import yaml

from glmtune.config import PreferenceConfig, RunConfig
from glmtune.config_checks import check_config
from glmtune.config_parsing import build_dataclass, parse_number
from glmtune.data.sources import open_source
from glmtune.errors import ConfigError
from glmtune.migrate.entry import translate_command
from glmtune.migrate.translation import dump_translation

QUESTION, BETTER, WORSE = "介绍一下这件衣服", "这是一件好看的衣服。", "不知道。"
FACTORY_DPO = {
    "model_name_or_path": "THUDM/chatglm3-6b",
    "trust_remote_code": True,
    "stage": "dpo",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_target": "all",
    "pref_beta": 0.1,
    "pref_loss": "sigmoid",
    "dataset": "pairs",
    "template": "chatglm3",
    "cutoff_len": 2048,
    "max_samples": 1000,
    "overwrite_cache": True,
    "preprocessing_num_workers": 16,
    "dataloader_num_workers": 1,
    "output_dir": "saves/chatglm3-6b/lora/dpo",
    "logging_steps": 10,
    "save_steps": 500,
    "plot_loss": True,
    "overwrite_output_dir": True,
    "save_only_model": False,
    "report_to": "none",
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "learning_rate": 5.0e-6,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "bf16": True,
    "ddp_timeout": 180000000,
    "resume_from_checkpoint": None,
}
"""The keys of LLaMA-Factory's example of DPO."""


def _from(role, text, **keys):
    names = {"from": "from", "value": "value", **keys}
    return {names["from"]: role, names["value"]: text}


def _role(role, text):
    return {"role": role, "content": text}


ENTRIES = {
    "alpaca": (
        {"ranking": True, "columns": {"prompt": "instruction", "query": "input", "chosen": "good", "rejected": "bad"}},
        {"instruction": QUESTION, "input": "", "good": BETTER, "bad": WORSE},
    ),
    "alpaca, a list of answers": ({"ranking": True}, {"instruction": QUESTION, "input": "", "output": [BETTER, WORSE]}),
    "sharegpt": (
        {
            "ranking": True,
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
        },
        {
            "conversations": [_from("human", QUESTION)],
            "chosen": _from("gpt", BETTER),
            "rejected": _from("gpt", WORSE),
        },
    ),
    "sharegpt without columns": (
        {"ranking": True, "formatting": "sharegpt"},
        {"conversations": [_from("human", QUESTION)], "chosen": _from("gpt", BETTER), "rejected": _from("gpt", WORSE)},
    ),
    "messages with role and content": (
        {
            "ranking": True,
            "formatting": "sharegpt",
            "columns": {"messages": "talk", "chosen": "chosen", "rejected": "rejected"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
        },
        {
            "talk": [_role("user", QUESTION)],
            "chosen": _role("assistant", BETTER),
            "rejected": _role("assistant", WORSE),
        },
    ),
    "keys and roles of its own": (
        {
            "ranking": True,
            "formatting": "sharegpt",
            "columns": {"messages": "talk", "chosen": "good", "rejected": "bad"},
            "tags": {"role_tag": "speaker", "content_tag": "text", "user_tag": "client", "assistant_tag": "agent"},
        },
        {
            "talk": [_from("client", QUESTION, **{"from": "speaker", "value": "text"})],
            "good": _from("agent", BETTER, **{"from": "speaker", "value": "text"}),
            "bad": _from("agent", WORSE, **{"from": "speaker", "value": "text"}),
        },
    ),
    "whole conversations as answers": (
        {"ranking": True, "formatting": "sharegpt", "columns": {"chosen": "chosen", "rejected": "rejected"}},
        {
            "chosen": [_role("user", QUESTION), _role("assistant", BETTER)],
            "rejected": [_role("user", QUESTION), _role("assistant", WORSE)],
        },
    ),
    "a question of messages in a named column": (
        {"ranking": True, "columns": {"prompt": "question", "chosen": "chosen", "rejected": "rejected"}},
        {
            "question": [_role("user", QUESTION)],
            "chosen": [_role("assistant", BETTER)],
            "rejected": [_role("assistant", WORSE)],
        },
    ),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_of_rankings(name, tmp_path):
    entry, row = ENTRIES[name]
    (tmp_path / "rows.json").write_text(json.dumps([row]), "utf-8")
    info = {"pairs": {"file_name": "rows.json", **entry}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info), "utf-8")
    for preference, answers in (("pairs", (BETTER, WORSE)), ("chosen", (BETTER,))):
        source = open_source(f"{tmp_path}:pairs", preference=preference)
        (pair,) = source
        for conversation, answer in zip((pair, pair.rejected), answers, strict=False):
            texts = [(message["role"], message["content"]) for message in conversation.messages]
            assert texts == [("user", QUESTION), ("assistant", answer)]
        assert not source.describe_rows() or preference == "chosen"


def _translate(values, tmp_path, monkeypatch):
    """The config of a YAML file of LLaMA-Factory, which a written copy repeats, and its notes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values), "utf-8")
    translation = translate_command(["run.yaml"])
    return _build(translation), translation.notes


def _build(translation):
    config = build_dataclass(RunConfig, translation.tree, "test")
    check_config(config)
    assert build_dataclass(RunConfig, yaml.safe_load(dump_translation(translation)), "test") == config
    return config


def test_the_factory_example_of_dpo(tmp_path, monkeypatch):
    config, notes = _translate(FACTORY_DPO, tmp_path, monkeypatch)
    assert (config.stage, config.preference.beta, config.preference.loss) == ("dpo", 0.1, "sigmoid")
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (8, 16, 0)
    assert (config.training["learning_rate"], config.training["warmup_steps"]) == (5e-6, 0.1)
    assert config.data.train[0]["path"] == "data:pairs"
    assert not any("pt" in note and "plain text" in note for note in notes)


def test_dropout_is_off_as_in_the_factory(tmp_path, monkeypatch):
    config, notes = _translate({**FACTORY_DPO, "lora_dropout": 0.05}, tmp_path, monkeypatch)
    assert config.lora.dropout == 0
    assert any("turns dropout off" in note for note in notes)
    config, _ = _translate({**FACTORY_DPO, "stage": "sft", "lora_dropout": 0.05}, tmp_path, monkeypatch)
    assert config.lora.dropout == 0.05


def test_another_reference_than_the_factory_s_is_said(tmp_path, monkeypatch):
    _, notes = _translate({**FACTORY_DPO, "adapter_name_or_path": "saves/sft"}, tmp_path, monkeypatch)
    assert any("the reference is the adapter before training" in note for note in notes)


@pytest.mark.parametrize(("key", "value"), [("pref_bco_weight", 0.5), ("ld_alpha", 0.3), ("ref_model", "other")])
def test_losses_of_the_factory_that_are_not_ours(key, value, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=key):
        _translate({**FACTORY_DPO, key: value}, tmp_path, monkeypatch)


def test_a_learning_rate_is_written_even_if_it_is_that_of_supervised_training(tmp_path, monkeypatch):
    config, _ = _translate({**FACTORY_DPO, "learning_rate": 1.0e-4}, tmp_path, monkeypatch)
    assert config.training["learning_rate"] == 1e-4


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto"])
def test_dropout_of_preference_tuning_is_off_unless_it_is_set(stage):
    """Else chance would decide whether a better answer is more probable than under the reference."""
    tree = {"model": "m", "data": "d", "stage": stage}
    config = build_dataclass(RunConfig, tree, "test")
    assert config.lora.dropout == config.ptuning.dropout == (0.1 if stage == "sft" else 0)
    assert build_dataclass(RunConfig, {**tree, "lora": {"dropout": 0.1}}, "test").lora.dropout == 0.1


FACTORY_KTO = {**FACTORY_DPO, "stage": "kto", "dataset": "labels", "val_size": 0.1, "eval_strategy": "steps"}
FACTORY_REWARD = {key: value for key, value in FACTORY_DPO.items() if not key.startswith("pref_")}
FACTORY_REWARD |= {"stage": "rm", "learning_rate": 1.0e-4, "output_dir": "saves/reward"}
FACTORY_PPO = {**FACTORY_REWARD, "stage": "ppo", "reward_model": "saves/reward", "learning_rate": 1.0e-5}
FACTORY_PPO |= {"max_new_tokens": 256, "top_k": 0, "top_p": 0.9, "dataset": "identity"}


def test_the_factory_examples_of_kto_and_reward_models(tmp_path, monkeypatch):
    weights = {"kto_chosen_weight": 1.5, "kto_rejected_weight": 0.5}
    config, _ = _translate({**FACTORY_KTO, **weights, "pref_beta": 0.2}, tmp_path, monkeypatch)
    preference = config.preference
    assert (config.stage, config.data.preference, preference.beta) == ("kto", "labels", 0.2)
    assert (preference.desirable_weight, preference.undesirable_weight) == (1.5, 0.5)
    config, notes = _translate({**FACTORY_REWARD, "pref_beta": 0.3}, tmp_path, monkeypatch)
    assert (config.stage, config.training["learning_rate"]) == ("rm", 1e-4)
    assert any("no effect with stage rm" in note for note in notes)


def test_ppo_becomes_grpo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(FACTORY_PPO), "utf-8")
    translation = translate_command(["run.yaml"])
    assert (translation.get_value("stage"), translation.get_value("reward")) == ("grpo", "saves/reward")
    assert translation.get_value("grpo") == {"max_completion_length": 256, "top_p": 0.9, "temperature": 0.95}
    assert any("ppo: becomes grpo" in note for note in translation.notes)


SWIFT = "swift rlhf --model m --train_type lora --dataset a.jsonl b.jsonl --learning_rate 1e-4 --rlhf_type"
TRL = "--model_name_or_path m --dataset_name a/b --use_peft --lora_target_modules q_proj v_proj --output_dir o"


@pytest.mark.parametrize(
    ("typed", "stage", "options"),
    [
        (f"{SWIFT} dpo --rpo_alpha 0.1 --load_from_cache_file true", "dpo", {"sft_weight": 0.1}),
        (
            f"{SWIFT} dpo --loss_type sigmoid sft --loss_weights 1 0.5 --beta 0.3",
            "dpo",
            {"sft_weight": 0.5, "beta": 0.3},
        ),
        (f"{SWIFT} dpo --loss_type ipo --label_smoothing 0", "dpo", {"loss": "ipo"}),
        (f"{SWIFT} orpo --beta 0.2", "orpo", {"beta": 0.2}),
        (f"{SWIFT} simpo --simpo_gamma 0.8 --cpo_alpha 0", "simpo", {"beta": 2, "margin": 0.8}),
        (f"{SWIFT} cpo --loss_type simpo", "simpo", {"beta": 2, "margin": 1, "sft_weight": 1}),
        (f"{SWIFT} kto --desirable_weight 2 --temperature 0.7", "kto", {"desirable_weight": 2}),
        (f"{SWIFT} rm --center_rewards_coefficient 0.01", "rm", {"center_rewards": 0.01}),
        (f"trl dpo {TRL} --beta 0.3 --max_prompt_length 512", "dpo", {"beta": 0.3}),
        (f"python trl/scripts/dpo.py {TRL} --loss_type sigmoid_norm", "dpo", {"length_normalized": True}),
        (f"accelerate launch dpo.py {TRL} --rpo_alpha 1", "dpo", {"sft_weight": 1}),
        (f"trl kto {TRL} --undesirable_weight 0.5", "kto", {"undesirable_weight": 0.5}),
        (f"python orpo.py {TRL} --beta 0.2", "orpo", {"beta": 0.2}),
        (f"python cpo.py {TRL} --loss_type simpo --cpo_alpha 0 --simpo_gamma 1", "simpo", {"margin": 1}),
        (f"trl reward {TRL} --center_rewards_coefficient 0.01", "rm", {"center_rewards": 0.01}),
        (f"trl sft {TRL} --packing", "sft", {}),
    ],
)
def test_command_lines_of_swift_and_trl(typed, stage, options):
    translation = translate_command(typed.split())
    config = _build(translation)
    assert (config.stage, config.method) == (stage, "lora")
    assert config.preference == PreferenceConfig(**options)
    if "swift" in typed:
        assert config.data.train == ["a.jsonl", "b.jsonl"]
    else:
        assert config.data.train == [{"path": "a/b", "split": "train"}]
        assert config.lora.targets == ["q_proj", "v_proj"]
    if stage not in ("sft", "rm"):
        assert config.lora.dropout == 0
    assert not any("lora_dropout" in note for note in translation.notes if stage == "dpo")


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        (f"{SWIFT} dpo --loss_type robust", "robust is not supported"),
        (f"{SWIFT} cpo", "cpo is supported with --loss_type simpo"),
        (f"{SWIFT} gkd", "gkd is not supported"),
        (f"{SWIFT} dpo --adapters x --ref_adapters y", "the reference is the model that training starts from"),
        (f"{SWIFT} grpo --reward_funcs accuracy format", "reward_funcs"),
        (f"trl dpo {TRL} --loss_type sigmoid ipo", "sigmoid ipo is not supported"),
        (f"trl dpo {TRL} --sync_ref_model", "sync_ref_model"),
        ("trl vllm-serve --model m", "no equivalent"),
    ],
)
def test_what_swift_and_trl_have_and_we_have_not(typed, problem):
    with pytest.raises(ConfigError) as caught:
        translate_command(typed.split())
    assert problem in caught.value.message


@pytest.mark.parametrize(
    ("typed", "grpo"),
    [
        (
            f"{SWIFT} ppo --reward_model r --response_length 64 --kl_coef 0.1",
            {"max_completion_length": 64, "beta": 0.1, "temperature": 0.9, "loss_type": "grpo"},
        ),
        (
            f"{SWIFT} grpo --reward_model r --num_generations 4 --beta 0.01 --use_vllm true",
            {"num_generations": 4, "beta": 0.01, "temperature": 0.9, "loss_type": "grpo"},
        ),
        (
            f"trl grpo {TRL} --reward_model_name_or_path r --num_generations 4 --max_completion_length 64",
            {"num_generations": 4, "max_completion_length": 64},
        ),
    ],
)
def test_online_tuning_of_swift_and_trl(typed, grpo):
    translation = translate_command(typed.split())
    assert (translation.get_value("stage"), translation.get_value("reward")) == ("grpo", "r")
    values = {key: parse_number(value) for key, value in translation.get_value("grpo").items()}
    assert values == grpo
    assert translation.get_value("preference") is None
    assert any("ppo: becomes grpo" in note for note in translation.notes) == (" ppo " in typed)


@pytest.mark.parametrize(
    ("typed", "questions"),
    [
        (f"trl grpo {TRL} --reward_model_name_or_path r", 1),
        (f"trl grpo {TRL} --per_device_train_batch_size 4 --gradient_accumulation_steps 8 --num_generations 4", 8),
        (f"{SWIFT} grpo --reward_model r --per_device_train_batch_size 16 --num_generations 4", 4),
        (f"{SWIFT} grpo --reward_model r", 1),
    ],
)
def test_batches_of_answers_become_batches_of_questions(typed, questions):
    translation = translate_command(typed.split())
    training = translation.get_value("training")
    assert (training["per_device_train_batch_size"], training["gradient_accumulation_steps"]) == (1, questions)
    assert any("count answers" in note for note in translation.notes)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ("", (1, 16, 1)),
        ("--batch_size 8 --eval_batch_size 2", (8, 2, 2)),
        ("--gradient_accumulation_steps 3", (1, 3, 1)),
    ],
)
def test_batch_sizes_that_swift_is_not_given(options, sizes):
    training = translate_command(f"{SWIFT} dpo {options}".split()).get_value("training")
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size")
    assert tuple(parse_number(training[key]) for key in keys) == sizes


def test_a_yaml_file_of_trl(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {
        "model_name_or_path": "THUDM/glm-4-9b-chat-hf",
        "dataset_name": "trl-lib/ultrafeedback_binarized",
        "use_peft": True,
        "lora_r": 32,
        "learning_rate": 5.0e-6,
        "beta": 0.05,
        "loss_type": ["sigmoid", "sft"],
        "loss_weights": [2.0, 0.4],
        "max_length": 1024,
        "eval_strategy": "steps",
        "output_dir": "out",
    }
    (tmp_path / "dpo.yaml").write_text(yaml.safe_dump(values), "utf-8")
    for words in (["dpo.yaml"], ["trl", "dpo", "--config", "dpo.yaml"]):
        config = _build(translate_command(words))
        assert (config.stage, config.preference) == ("dpo", PreferenceConfig(beta=0.05, sft_weight=0.2))
        assert config.data.eval == [{"path": "trl-lib/ultrafeedback_binarized", "split": "test"}]
        assert (config.lora.rank, config.data.max_length) == (32, 1024)


TRL_SOURCE = """
from trl import DPOConfig, DPOTrainer
MODEL = "THUDM/glm-4-9b-chat-hf"
model = AutoModelForCausalLM.from_pretrained(MODEL)
rows = load_dataset("json", data_files={"train": ["a.jsonl", "b.jsonl"]}, split="train")
args = DPOConfig("out", beta=0.2, max_prompt_length=512, learning_rate=5e-6, logging_steps=len("abc"))
trainer = DPOTrainer(model, args=args, train_dataset=rows, peft_config=LoraConfig(r=4, target_modules=["q_proj"]))
raise SystemExit("this is never executed")
"""


def test_a_python_script_of_trl_is_read_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train_dpo.py").write_text(TRL_SOURCE, "utf-8")
    for words in (["train_dpo.py"], ["accelerate", "launch", "train_dpo.py"]):
        translation = translate_command(words)
        config = _build(translation)
        assert (config.stage, config.preference.beta, config.output) == ("dpo", 0.2, "out")
        assert (config.model.path, config.data.train) == ("THUDM/glm-4-9b-chat-hf", ["a.jsonl", "b.jsonl"])
        assert (config.lora.rank, config.lora.targets) == (4, ["q_proj"])
        assert config.training["learning_rate"] == 5e-6
        assert "Not read, for they are computed: logging_steps." in translation.notes
    (tmp_path / "two.py").write_text(TRL_SOURCE + "other = KTOConfig()", "utf-8")
    with pytest.raises(ConfigError, match="2 of TRL's configs"):
        translate_command(["python", "two.py"])
