"""The published folders through transformers' Auto classes and peft, and `chat` as the published code has it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from prefixes import prepare_ptuning, write_published_prefix
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import glmtune
from glmtune.auto_classes import published_chat
from glmtune.auto_classes.published_chat import widen_punctuation
from glmtune.config import LoraConfig, PTuningConfig
from glmtune.errors import ConfigError, DataError, ModelError
from glmtune.families import get_family
from glmtune.generation.reply import Sampling, generate_reply
from glmtune.methods.base_info import BaseInfo
from glmtune.methods.lora import Lora
from glmtune.methods.lora_official import write_official_adapter
from glmtune.methods.ptuning import PTuning
from glmtune.models.checkpoints import inspect_checkpoint
from tiny import FAMILIES, make_tiny

IDS = torch.tensor([[9, 8, 7, 30, 31, 32]])
WITH_ROLES = ("chatglm3", "glm4")


@pytest.fixture
def published(tiny, tmp_path):
    """`published(family)`: a folder whose files name code of the repository; running it leaves a file."""

    def make(family: str) -> Path:
        folder = tmp_path / f"{family}-6b"
        shutil.copytree(tiny(family), folder)
        path, settings = folder / "config.json", folder / "tokenizer_config.json"
        code = {
            "AutoConfig": "configuration_chatglm.ChatGLMConfig",
            "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
            "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
            "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
        }
        config = json.loads(path.read_text(encoding="utf-8")) | {"auto_map": code}
        path.write_text(json.dumps(config), encoding="utf-8")
        own = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        own |= {
            "tokenizer_class": "ChatGLMTokenizer",
            "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
        }
        settings.write_text(json.dumps(own), encoding="utf-8")
        marker = f"open({str(folder / 'code-was-run')!r}, 'w')\n"
        role_tokens = "# <|assistant|>\n" if family in WITH_ROLES else ""
        for name in ("configuration", "modeling", "tokenization"):
            (folder / f"{name}_chatglm.py").write_text(role_tokens + marker, encoding="utf-8")
        return folder

    return make


@pytest.fixture(autouse=True)
def refuse_questions(monkeypatch):
    """No question whether to run custom code."""

    def refuse(*_):
        raise AssertionError("a question was asked")

    monkeypatch.setattr("builtins.input", refuse)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS, use_cache=False).logits.float()


def load_pair(folder: Path):
    return AutoModel.from_pretrained(str(folder), trust_remote_code=True), AutoTokenizer.from_pretrained(
        str(folder), trust_remote_code=True
    )


# Loading


@pytest.mark.parametrize("trust", [None, True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_auto_classes_open_published_folders_without_their_code(family, trust, published):
    folder = published(family)
    options = {} if trust is None else {"trust_remote_code": trust}
    config = AutoConfig.from_pretrained(str(folder), **options)
    assert config.num_hidden_layers == 2
    wanted = logits(glmtune.load_model(folder))
    for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM):
        model = auto_class.from_pretrained(str(folder), **options)
        assert torch.equal(logits(model), wanted)
        assert callable(model.chat)
        assert not model.training
    assert torch.equal(logits(AutoModel.from_pretrained(folder, config=config, **options)), wanted)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), padding_side="right", **options)
    assert tokenizer("你好").input_ids == glmtune.load_tokenizer(folder)("你好").input_ids
    assert tokenizer.padding_side == "right"
    assert not (folder / "code-was-run").exists()


def test_special_tokens_typed_in_a_text(published):
    """An argument of the published tokenizers; prompts of `chat` never take typed ones for real."""
    folder = published("chatglm3")
    for encode in (True, False):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True, encode_special_tokens=encode)
        ids = tokenizer("<|user|>", add_special_tokens=False).input_ids
        assert (tokenizer.convert_tokens_to_ids("<|user|>") in ids) is encode


def test_importing_glmtune_last_is_enough(published):
    folder = published("chatglm2")
    script = f"""
import transformers
from transformers import AutoModel, AutoTokenizer, GlmForCausalLM
import glmtune
tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})
model = AutoModel.from_pretrained({str(folder)!r})
print(type(model) is GlmForCausalLM, len(model.chat(tokenizer, "你好", max_new_tokens=3)[1]))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "1"]


def test_other_models_are_left_to_transformers(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    (tmp_path / "llama" / "config.yaml").write_text("other: true\n", encoding="utf-8")
    assert type(AutoModel.from_pretrained(tmp_path / "llama")) is LlamaModel
    with pytest.raises(OSError, match="nowhere"):
        AutoModel.from_pretrained(str(tmp_path / "nowhere"))


def test_a_folder_that_is_not_whole_is_refused(tiny, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(tiny("chatglm2"), folder)
    state = load_file(folder / "model.safetensors")
    del state["transformer.output_layer.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"missing: transformer\.output_layer\.weight"):
        AutoModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"config": "config.json"}, "config is a path"),
        ({"config": glmtune}, "config is a module"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config is a dict"),
        ({"quantization_bit": 3}, "quantization_bit is 3|no quantization 'packed3'"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(options, words, tiny):
    with pytest.raises(ModelError, match=words):
        AutoModel.from_pretrained(tiny("chatglm2"), **options)
    with pytest.raises(ModelError, match="bos_toke cannot be set"):
        AutoTokenizer.from_pretrained(tiny("chatglm2"), bos_toke="x")


@pytest.mark.parametrize("family", FAMILIES)
def test_precision_and_official_quantisation(family, tiny):
    folder = tiny(family)
    frequencies = {name: value.clone() for name, value in AutoModel.from_pretrained(folder).named_buffers()}
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).half()
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    # In fp16 the rotary frequencies would be other positions.
    assert all(torch.equal(value, frequencies[name]) for name, value in model.named_buffers())
    assert AutoModel.from_pretrained(folder, torch_dtype=torch.bfloat16).dtype is torch.bfloat16
    assert AutoModel.from_pretrained(folder, torch_dtype="auto").dtype is torch.float32
    for bits in (4, 8):
        model = AutoModel.from_pretrained(folder).quantize(bits)
        wanted = logits(glmtune.load_model(folder, quantization=f"packed{bits}"))
        assert torch.equal(logits(model), wanted)
        assert model.quantize(bits) is model
    assert torch.equal(logits(AutoModel.from_pretrained(folder, quantization_bit=8)), wanted)
    with pytest.raises(ModelError, match="is packed8 already"):
        model.quantize(4)
    with pytest.raises(ModelError, match="4 or 8 bits"):
        model.quantize(3)


def test_bitsandbytes(tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    folder = make_tiny("chatglm", tmp_path / "chatglm-6b", hidden=64)
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModel.from_pretrained(
        str(folder), quantization_config=settings, trust_remote_code=True, device_map="auto"
    )
    assert torch.equal(logits(model), logits(glmtune.load_model(folder, quantization="nf4")))
    assert len(model.chat(AutoTokenizer.from_pretrained(folder), "你好", max_new_tokens=2)[1]) == 1
    with pytest.raises(ModelError, match="is nf4 already"):
        model.quantize(4)


@pytest.mark.parametrize("kind", ["plain", "proj"])
@pytest.mark.parametrize("family", ["chatglm", "chatglm2"])
def test_a_published_prefix_as_its_readme_loads_it(family, kind, golden, tmp_path):
    base = golden / family
    checkpoint = write_published_prefix(family, kind, golden, tmp_path / "checkpoint-3000")
    config = AutoConfig.from_pretrained(base, trust_remote_code=True, pre_seq_len=6, prefix_projection=kind == "proj")
    model = AutoModel.from_pretrained(base, config=config, trust_remote_code=True)
    prefix_state_dict = torch.load(checkpoint / "pytorch_model.bin")
    new_prefix_state_dict = {
        k[len("transformer.prefix_encoder.") :]: v
        for k, v in prefix_state_dict.items()
        if k.startswith("transformer.prefix_encoder.")
    }
    model.transformer.prefix_encoder.load_state_dict(new_prefix_state_dict)
    model = model.half()
    model.transformer.prefix_encoder.float()
    model = model.float().eval()
    ids = torch.tensor([[9, 8, 7, config.gmask_token_id, config.bos_token_id]]) if family == "chatglm" else IDS
    with torch.no_grad():
        found = model(input_ids=ids).logits
        wanted = glmtune.load_model(base, adapter=checkpoint, dtype="fp32")(input_ids=ids).logits
    torch.testing.assert_close(found, wanted, atol=2e-2, rtol=2e-2)  # weights went through fp16
    packed = logits(model.quantize(8))
    assert model.transformer.prefix_encoder.embedding.weight.dtype is torch.float32
    assert torch.isfinite(packed).all()


def test_what_was_trained_opens_too(tiny, tmp_path):
    base = tiny("chatglm3")
    tuned = prepare_ptuning(base)
    info = BaseInfo(str(base), inspect_checkpoint(base).fingerprint, "chatglm3")
    PTuning(PTuningConfig(5)).save(tuned, tmp_path / "adapter", info)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter", trust_remote_code=True, device_map="auto")
    assert torch.equal(logits(model), logits(tuned))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter", trust_remote_code=True)
    assert model.chat(tokenizer, "你好", do_sample=False, max_new_tokens=2)[0] is not None


@pytest.mark.parametrize("family", ["chatglm3", "glm4"])
def test_exports_in_transformers_layout_chat_too(family, tiny, tmp_path):
    folder = tmp_path / "export"
    model = glmtune.load_model(tiny(family))
    model.save_pretrained(folder)
    glmtune.load_tokenizer(tiny(family)).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for auto_class in (AutoModel, AutoModelForCausalLM):
        again = auto_class.from_pretrained(folder)
        assert torch.equal(logits(again), logits(model))
        assert len(again.chat(tokenizer, "你好", max_new_tokens=2)[1]) == 2
        again.half()
        assert again.model.rotary_emb.inv_freq.dtype is torch.float32


# Adapters through peft


@pytest.mark.parametrize("family", ["chatglm2", "glm4"])
def test_adapters_of_the_published_code_through_peft(family, tiny, tmp_path):
    """peft alone finds no query_key_value in the native model."""
    base = tiny(family)
    method = Lora(LoraConfig(rank=2, alpha=4), get_family(family))
    trained = method.prepare(glmtune.load_model(base))
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    checkpoint = inspect_checkpoint(base)
    method.save(trained, tmp_path / "ours", BaseInfo(str(base), checkpoint.fingerprint, family))
    write_official_adapter(tmp_path / "ours", checkpoint.native_shapes, tmp_path / "official")
    wanted = logits(trained)
    for name in ("ours", "official"):
        model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(tmp_path / name))
        torch.testing.assert_close(logits(model), wanted, atol=1e-5, rtol=1e-5)
        assert isinstance(model, PeftModel)
    # The folder of a run means its adapter.
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("method: lora\n", encoding="utf-8")
    shutil.copytree(tmp_path / "ours", tmp_path / "run" / "adapter")
    assert PeftConfig.from_pretrained(str(tmp_path / "run")).r == 2
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(tmp_path / "run"))
    torch.testing.assert_close(logits(model), wanted, atol=1e-5, rtol=1e-5)
    path = tmp_path / "official" / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"base_model_name_or_path": str(base)}), encoding="utf-8")
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "official", trust_remote_code=True, device_map="auto")
    torch.testing.assert_close(logits(model), wanted, atol=1e-5, rtol=1e-5)
    assert model.peft_config["default"].base_model_name_or_path == str(base)
    # `chat` of the wrapped model is that of the base with the adapter in it.
    tokenizer = AutoTokenizer.from_pretrained(base)
    options = {"max_new_tokens": 6, "do_sample": False}
    by_hand = glmtune.load_model(base, adapter=tmp_path / "ours")
    assert model.chat(tokenizer, "你好", **options)[0] == by_hand.chat(tokenizer, "你好", **options)[0]


def test_a_prefix_of_peft_through_peft(tiny, tmp_path):
    """peft would count positions behind the prefix on the native model: other replies, without a word."""
    base, folder = tiny("chatglm3"), tmp_path / "peft"
    folder.mkdir()
    config = {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4, "token_dim": 16}
    config |= {"num_layers": 2, "num_attention_heads": 2, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({"prompt_embeddings": torch.randn(4, 64)}, folder / "adapter_model.safetensors")
    model = AutoPeftModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert torch.equal(logits(model), logits(glmtune.load_model(base, adapter=folder)))
    assert model.peft_config["default"].base_model_name_or_path == str(base)


# chat


def answer(model, tokenizer, family: str, messages: list[dict], **sampling) -> str:
    """The reply of `glmtune chat`."""
    return generate_reply(model, tokenizer, get_family(family), messages, sampling=Sampling(**sampling)).content


@pytest.mark.parametrize("family", FAMILIES)
def test_chat_gives_the_replies_and_the_published_history(family, tiny):
    model, tokenizer = load_pair(tiny(family))
    first = [{"role": "user", "content": "白色上衣"}]
    wanted = answer(model, tokenizer, family, first, max_new_tokens=6)
    reply, history = model.chat(tokenizer, "白色上衣", history=[], do_sample=False, max_new_tokens=6)
    assert reply in (wanted, widen_punctuation(wanted))
    if family in WITH_ROLES:
        assert history[0] == {"role": "user", "content": "白色上衣"}
        assert history[1] == {"role": "assistant", "metadata": "", "content": reply}
        known = [history[0], {"role": "assistant", "content": reply}]
    else:
        assert history == [("白色上衣", reply)]
        known = [*first, {"role": "assistant", "content": reply}]
    question = {"role": "user", "content": "裙"}
    wanted = answer(model, tokenizer, family, [*known, question], max_new_tokens=6)
    before = list(history)
    second, longer = model.chat(tokenizer, query="裙", history=history, do_sample=False, max_new_tokens=6)
    assert second in (wanted, widen_punctuation(wanted))
    assert history == before
    assert len(longer) == 2 * len(history)


@pytest.mark.parametrize("family", FAMILIES)
def test_stream_chat_ends_with_the_reply_of_chat(family, tiny):
    model, tokenizer = load_pair(tiny(family))
    reply, history = model.chat(tokenizer, "白色上衣", do_sample=False, max_new_tokens=12)
    pieces = list(model.stream_chat(tokenizer, "白色上衣", history=[], do_sample=False, max_new_tokens=12))
    assert pieces[-1] == (reply, history)
    assert len(pieces) > 2
    assert all(len(text) <= len(reply) + 1 for text, _ in pieces)


def test_stream_chat_as_the_published_cli_demo_calls_it(tiny):
    model, tokenizer = load_pair(tiny("chatglm2"))
    reply, history, states = "", [], None
    for question in ("白色上衣", "裙"):
        pieces = model.stream_chat(
            tokenizer,
            question,
            history=history,
            top_p=1,
            temperature=0.01,
            past_key_values=states,
            return_past_key_values=True,
            max_new_tokens=5,
        )
        reply, history, states = list(pieces)[-1]
    assert [entry[0] for entry in history] == ["白色上衣", "裙"]
    assert history[-1][1] == reply


def test_arguments_by_position_and_their_effects(tiny):
    model, tokenizer = load_pair(tiny("chatglm"))
    prompt = get_family("chatglm").encode_prompt([{"role": "user", "content": "裙"}], tokenizer)
    greedy = model.chat(tokenizer, "裙", None, len(prompt) + 8, 1, False)[0]
    messages = [{"role": "user", "content": "裙"}]
    assert greedy == widen_punctuation(answer(model, tokenizer, "chatglm", messages, max_new_tokens=8))
    options = {"max_new_tokens": 8}
    assert model.chat(tokenizer, "裙", top_k=1, **options)[0] == greedy
    assert model.chat(tokenizer, "裙", temperature=1e-4, **options)[0] == greedy
    penalised = answer(model, tokenizer, "chatglm", messages, max_new_tokens=8, repetition_penalty=5.0)
    found = model.chat(tokenizer, "裙", do_sample=False, repetition_penalty=5.0, **options)[0]
    assert found == widen_punctuation(penalised)

    def forbid(input_ids, scores):
        return scores.index_fill(-1, scores.argmax(-1), float("-inf"))

    assert model.chat(tokenizer, "裙", do_sample=False, logits_processor=[forbid], **options)[0] != greedy
    replies = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        replies.append(model.chat(tokenizer, "裙", temperature=2.0, top_p=1.0, **options)[0])
    assert replies[0] == replies[1] != replies[2]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"num_beams": 4}, ConfigError, "num_beams: beam search is not supported"),
        ({"no_repeat_ngram_size": 3}, ConfigError, "unknown argument no_repeat_ngram_size"),
        ({"past_key_values": ((),)}, ConfigError, "past_key_values holds states of another call"),
        ({"temperature": 0}, ConfigError, "temperature is 0.*\nGive do_sample=False"),
        ({"temperature": float("nan")}, ConfigError, "temperature is nan"),
        ({"top_p": 1.5}, ConfigError, r"top_p is 1\.5"),
        ({"max_length": 3}, DataError, "query does not fit; max_length, 3, counts"),
        ({"history": "你好"}, DataError, "the history is a str"),
        ({"history": [("a",)]}, DataError, "entry 1 of the history is no turn"),
        ({"query": None}, DataError, "the query is a NoneType"),
    ],
)
def test_arguments_that_cannot_be_honoured_are_refused(arguments, error, words, tiny):
    model, tokenizer = load_pair(tiny("chatglm2"))
    with pytest.raises(error, match=words):
        list(model.stream_chat(tokenizer, **{"query": "裙"} | arguments))


def give_reply(monkeypatch, tokenizer, text: str) -> None:
    """Let the model reply with a text."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    monkeypatch.setattr(published_chat, "stream_tokens", lambda *_, **__: iter([{0: token} for token in ids]))


TOOLS = [{"name": "weather", "description": "天气", "parameters": {"city": {"type": "string"}}}]
SYSTEM = {"role": "system", "content": "Answer as best as you can.", "tools": TOOLS}


def test_a_tool_call_is_parsed_and_never_run(tiny, tmp_path, monkeypatch):
    model, tokenizer = load_pair(tiny("chatglm3"))
    give_reply(monkeypatch, tokenizer, "weather\n```python\ntool_call(city='a')\n```")
    reply, history = model.chat(tokenizer, "b", history=[SYSTEM])
    assert reply == {"name": "weather", "parameters": {"city": "a"}}
    assert history[-1]["metadata"].strip() == "weather"
    plain, _ = model.chat(tokenizer, "b", history=[])
    assert plain["name"] == "weather"
    assert "tool_call" in plain["content"]
    marker = tmp_path / "was-run"
    give_reply(monkeypatch, tokenizer, f"weather\n```python\ntool_call(city=open('{marker}', 'w'))\n```")
    reply, history = model.chat(tokenizer, "b", history=[SYSTEM])
    assert "open(" in reply["content"]
    assert not marker.exists()


def test_tools_of_a_system_message_and_results_are_in_the_prompt(tiny, monkeypatch):
    model, tokenizer = load_pair(tiny("chatglm3"))
    prompts = []
    monkeypatch.setattr(published_chat, "stream_tokens", lambda _, ids, *__, **___: prompts.extend(ids) or iter(()))
    call = {"role": "assistant", "metadata": "weather", "content": "x"}
    model.chat(tokenizer, '{"t": 3}', history=[SYSTEM, {"role": "user", "content": "b"}, call], role="observation")
    text = f"{SYSTEM['content']}\n{json.dumps(TOOLS, indent=4, ensure_ascii=False)}"
    messages = [{"role": "system", "content": text}, {"role": "user", "content": "b"}, call]
    messages.append({"role": "observation", "content": '{"t": 3}'})
    assert prompts == [get_family("chatglm3").encode_prompt(messages, tokenizer)]


def test_punctuation_of_chatglm_6b():
    assert widen_punctuation("好,不好!a,b 好? :好") == "好，不好！a,b 好？ ：好"
