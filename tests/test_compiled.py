"""The compiled step: the replies of the plain loop, whatever is compiled. The backend is torch's pass-through, so that
what is tested is what torch traces and the cache of fixed size; one test has a compiler make the code."""

from __future__ import annotations

import shutil

import pytest
import torch
from command import make_runner
from peft import LoraConfig, get_peft_model

import glmtune
from glmtune.bench.measure import measure_model
from glmtune.config import PTuningConfig
from glmtune.errors import ConfigError
from glmtune.generation import cpu_prepack
from glmtune.generation.compiled_step import compile_step, find_compiled_step
from glmtune.generation.cpu_prepack import PrepackedLinear, prepacked
from glmtune.generation.engine import decode_tokens, pick_greedy
from glmtune.methods.ptuning import PTuning
from glmtune.quantization.quantizer import pack_model
from tiny import FAMILIES

TEXTS = ["你好", "类型#上衣*材质#牛仔布*颜色#白色", "hello world"]


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch):
    """Prepack the matrices of tiny models too."""
    monkeypatch.setattr(cpu_prepack, "_MIN_ELEMENTS", 0)


@pytest.fixture(autouse=True)
def forget_what_was_compiled():
    yield
    torch._dynamo.reset()


def _plain(model):
    return model


def _lora(model):
    torch.manual_seed(0)
    targets = [
        name for name in ("q_proj", "query_key_value") if any(n.endswith(name) for n, _ in model.named_modules())
    ]
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    return wrapped.eval()


def _prefix(model):
    torch.manual_seed(0)
    return PTuning(PTuningConfig(5, False, 0.0)).prepare(model).eval()


FORMS = {
    "plain": _plain,
    "lora": _lora,
    "prefix": _prefix,
    "int8": lambda model: pack_model(model, 8),
    "int4": lambda model: pack_model(model, 4),
}


@pytest.fixture
def ready(tiny):
    def make(family, form):
        folder = tiny(family)
        tokenizer, found = glmtune.load_tokenizer(folder), glmtune.detect_family(folder)
        prompts = [found.encode_prompt([{"role": "user", "content": text}], tokenizer) for text in TEXTS]
        model = glmtune.load_model(folder, dtype="fp32", device="cpu")
        return FORMS[form](model), prompts, tokenizer.pad_token_id

    return make


def _counting(model):
    """Compile the model's step; the list grows by one for each graph that torch makes of it."""
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compile_step(model, backend)
    return graphs


# What is compiled differs by the model's code, of which there are two; positions and prompts by generation.
CASES = [(family, form) for form in FORMS for family in (FAMILIES if form == "plain" else ("chatglm", "chatglm3"))]


@pytest.mark.parametrize(("family", "form"), CASES)
def test_replies_are_those_of_the_plain_loop(family, form, ready):
    model, prompts, padding = ready(family, form)
    options = {"max_new_tokens": 9, "padding": padding}
    free = decode_tokens(model, prompts, pick_greedy, stops=(), **options)
    stops = [free[0][3]]
    expected = decode_tokens(model, prompts, pick_greedy, stops=stops, **options)
    alone = decode_tokens(model, prompts[1:2], pick_greedy, stops=(), **options)
    graphs = _counting(model)
    assert decode_tokens(model, prompts, pick_greedy, stops=(), **options) == free
    assert graphs
    made = len(graphs)
    assert decode_tokens(model, prompts, pick_greedy, stops=stops, **options) == expected
    decode_tokens(model, prompts, pick_greedy, stops=(), max_new_tokens=14, padding=padding)
    assert len(graphs) == made  # nothing was compiled again, for no step
    assert decode_tokens(model, prompts[1:2], pick_greedy, stops=(), **options) == alone
    assert expected != free


def test_a_longer_reply_gets_a_larger_cache(ready):
    model, prompts, padding = ready("chatglm3", "plain")
    length = 512 - len(prompts[0])
    expected = decode_tokens(model, prompts[:1], pick_greedy, max_new_tokens=length + 4, stops=(), padding=padding)
    compile_step(model, "eager")
    sizes = [find_compiled_step(model).new_cache(1, places).get_max_length() for places in (1, 512, 513)]
    assert sizes == [512, 512, 1024]
    options = {"stops": (), "padding": padding}
    assert decode_tokens(model, prompts[:1], pick_greedy, max_new_tokens=4, **options) == [expected[0][:4]]
    assert decode_tokens(model, prompts[:1], pick_greedy, max_new_tokens=length + 4, **options) == expected


@pytest.mark.parametrize("form", ["plain", "prefix"])
def test_a_prompt_of_one_token_sees_no_empty_places(form, ready):
    model, _, padding = ready("chatglm3", form)
    expected = decode_tokens(model, [[7], [9]], pick_greedy, max_new_tokens=4, stops=(), padding=padding)
    compile_step(model, "eager")
    assert decode_tokens(model, [[7], [9]], pick_greedy, max_new_tokens=4, stops=(), padding=padding) == expected


def test_a_lack_of_memory_while_compiling_is_told_as_one(ready):
    def backend(graph, example_inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model, prompts, padding = ready("chatglm3", "plain")
    compile_step(model, backend)
    with pytest.raises(torch.OutOfMemoryError):
        decode_tokens(model, prompts, pick_greedy, max_new_tokens=3, stops=(), padding=padding)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_compiled_training_keeps_no_unpacked_weight(form, ready):
    model, _, _ = ready("chatglm3", form)
    layer = model.model.layers[0].mlp.down_proj
    inputs = torch.randn(3, layer.in_features, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        outputs = torch.compile(layer, backend="eager")(inputs)
    assert torch.equal(outputs, layer(inputs))
    assert (layer.out_features, layer.in_features) not in kept
    outputs.sum().backward()
    assert inputs.grad.abs().sum() > 0


def test_speed_is_measured_once_everything_is_compiled(ready):
    model, _, _ = ready("chatglm3", "plain")
    graphs, made = _counting(model), []
    measure_model(model, prompt_tokens=5, new_tokens=2, repeats=2, on_repeat=lambda: made.append(len(graphs)))
    assert made[0] == made[1] > 0


def test_what_is_compiled_stays_in_the_usual_order(ready):
    model, _, _ = ready("chatglm3", "plain")
    compile_step(model, "eager")
    with prepacked(model):
        assert not any(isinstance(module, PrepackedLinear) for module in model.modules())


def test_where_torch_cannot_compile_the_error_names_the_way_out(ready):
    def backend(graph, example_inputs):
        raise RuntimeError("there is no compiler")

    model, prompts, padding = ready("chatglm3", "plain")
    compile_step(model, backend)
    with pytest.raises(ConfigError, match=r"no compiler[\s\S]*Leave out --compile"):
        decode_tokens(model, prompts, pick_greedy, max_new_tokens=3, stops=(), padding=padding)


@pytest.mark.parametrize(
    "command", [["chat", "--prompt", "hi"], ["eval", "--data", "none.json"], ["bench", "--variants", "fp32"]]
)
def test_on_a_cpu_it_is_refused_before_anything_is_loaded(command, tiny, monkeypatch, capsys):
    run = make_runner(monkeypatch, capsys)
    done = run(command[0], tiny("chatglm3"), *command[1:], "--compile", "--device", "cpu")
    assert done.code == 1
    assert done.err.strip().splitlines() == [
        "Error: --compile is for a CUDA GPU: on a CPU the step is faster as it is.",
        "Leave it out.",
    ]


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_compiled_code_gives_the_same_replies(form, ready):
    if shutil.which("g++") is None:
        pytest.skip("torch makes C++ here, and there is no g++")
    model, prompts, padding = ready("chatglm3", form)
    expected = decode_tokens(model, prompts[:1], pick_greedy, max_new_tokens=6, stops=(), padding=padding)
    compile_step(model)
    assert decode_tokens(model, prompts[:1], pick_greedy, max_new_tokens=6, stops=(), padding=padding) == expected
