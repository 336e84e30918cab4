"""The recorded decoding step. The recorder of these tests stands for a CUDA graph: it notes every operation with its
tensors, and repeats them on the same memory, so that whatever is no tensor stays as it was when it was recorded."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import glmtune
from conftest import REPOSITORY
from glmtune.config import PTuningConfig
from glmtune.generation import graph_step
from glmtune.generation.compiled_step import compile_step, unwrap_model
from glmtune.generation.engine import NonFiniteLogitsError, decode_tokens, pick_greedy
from glmtune.generation.graph_step import GraphDecoder
from glmtune.generation.sampling import Sampling, make_sampler
from glmtune.methods.ptuning import PTuning
from glmtune.quantization.quantizer import pack_model

PROMPTS = [[20, 21, 22, 23], [30, 31]]
OPTIONS = {"max_new_tokens": 20, "stops": (), "padding": 3}


class Tape(TorchDispatchMode):
    """Notes operations and repeats them, as `record_cuda_graph` does on a GPU."""

    def __init__(self):
        super().__init__()
        self._notes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self._notes.append((function, args, kwargs or {}, result))
        return result

    def repeat(self):
        for function, args, kwargs, result in self._notes:
            for old, new in zip(tree_flatten(result)[0], tree_flatten(function(*args, **kwargs))[0], strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Clock:
    """Stands still but for the steps of a model: a plain one takes 1 s."""

    def __init__(self, repeated_s):
        self.now, self.repeated_s = 0.0, repeated_s
        self.plain_steps = self.repeated_steps = self.recordings = 0

    def perf_counter(self):
        return self.now

    def end_plain_step(self, *_):
        self.now += 1
        self.plain_steps += 1

    def record(self, step):
        self.recordings += 1
        tape = Tape()
        with tape:
            logits = step()

        def repeat():
            tape.repeat()
            self.now += self.repeated_s
            self.repeated_steps += 1

        return repeat, logits


@pytest.fixture
def ready(monkeypatch):
    """A model whose steps are recorded after three plain ones, and its clock."""

    def make(family="chatglm2", form=lambda model: model, repeated_s=0.25, record=None, dtype="fp32"):
        clock = Clock(repeated_s)
        monkeypatch.setattr(graph_step, "time", clock)
        monkeypatch.setattr(graph_step, "_PLAIN_TOKENS", 3)
        torch.manual_seed(0)
        model = form(glmtune.load_model(REPOSITORY / "tests" / "golden" / family, dtype=dtype, device="cpu")).eval()
        bare = unwrap_model(model)
        bare.register_forward_hook(clock.end_plain_step)
        return model, clock, lambda: attach(bare, record or clock.record)

    def attach(bare, record):
        bare._graph_decoder = GraphDecoder(bare, record)
        return bare._graph_decoder

    return make


def add_lora(model):
    targets = [
        name for name in ("q_proj", "query_key_value") if any(n.endswith(name) for n, _ in model.named_modules())
    ]
    return get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))


def add_prefix(model):
    return PTuning(PTuningConfig(5, False, 0.0)).prepare(model)


FORMS = {"plain": lambda model: model, "lora": add_lora, "prefix": add_prefix, "packed4": lambda m: pack_model(m, 4)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["chatglm", "chatglm2"])
def test_replies_are_those_of_the_plain_loop(family, form, ready):
    model, clock, attach = ready(family, FORMS[form])
    expected = decode_tokens(model, PROMPTS, pick_greedy, **OPTIONS)
    alone = decode_tokens(model, PROMPTS[:1], pick_greedy, **OPTIONS)
    attach()
    assert decode_tokens(model, PROMPTS, pick_greedy, **OPTIONS) == expected
    assert clock.recordings == 1
    assert decode_tokens(model, PROMPTS[:1], pick_greedy, **OPTIONS) == alone  # another number of rows
    assert clock.recordings == 2


def test_a_later_reply_takes_the_recording_of_an_earlier_one(ready):
    model, clock, attach = ready()
    expected = [decode_tokens(model, [prompt], pick_greedy, **OPTIONS) for prompt in PROMPTS]
    decoder = attach()
    assert decode_tokens(model, PROMPTS[:1], pick_greedy, **OPTIONS) == expected[0]
    before = clock.plain_steps
    assert decode_tokens(model, PROMPTS[1:], pick_greedy, **OPTIONS) == expected[1]
    assert clock.recordings == 1
    assert clock.plain_steps - before == 2  # the prompt, and the step that the recording is compared with
    assert decoder.describe() == "CUDA graph: 250.00 ms a step, 1000.00 without"


@pytest.mark.parametrize("is_in_place", [True, False])
def test_a_changed_model_is_recorded_again(is_in_place, ready):
    model, clock, attach = ready(form=add_lora)
    decoder = attach()
    first = decode_tokens(model, PROMPTS[:1], pick_greedy, **OPTIONS)
    change = model.disable_adapter() if not is_in_place else torch.no_grad()
    with change:
        if is_in_place:
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.mul_(-20)
        unwrap_model(model)._graph_decoder = None
        expected = decode_tokens(model, PROMPTS[:1], pick_greedy, **OPTIONS)
        unwrap_model(model)._graph_decoder = decoder
        assert decode_tokens(model, PROMPTS[:1], pick_greedy, **OPTIONS) == expected
    assert clock.recordings == 2
    assert first != expected


def test_rows_that_stop_early_and_samplers(ready):
    model, _, attach = ready()
    free = decode_tokens(model, PROMPTS, pick_greedy, **OPTIONS)
    options = OPTIONS | {"stops": [free[0][6]]}
    sampling = Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.2)

    def decode(choose):
        return decode_tokens(model, PROMPTS, choose, **options)

    def sample():
        return decode(make_sampler(sampling, [1, 2], torch.device("cpu")))

    expected = decode(pick_greedy), sample()
    attach()
    assert (decode(pick_greedy), sample()) == expected


def fail_to_record(step):
    raise RuntimeError("operation not permitted when stream is capturing")


def record_nonsense(step):
    logits = step()
    return lambda: None, logits + 1000 * torch.rand_like(logits)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"repeated_s": 2.0}, "a recorded step takes 2000.00 ms, the plain one 1000.00"),
        ({"record": fail_to_record}, "the step cannot be recorded (RuntimeError: operation not permitted when"),
        ({"record": record_nonsense}, "a recorded step gives other numbers than the plain one"),
    ],
)
def test_a_recording_that_does_not_serve_is_left_and_named(options, reason, ready, capsys):
    model, _, attach = ready(**options)
    expected = decode_tokens(model, PROMPTS, pick_greedy, **OPTIONS)
    decoder = attach()
    for _ in range(2):
        assert decode_tokens(model, PROMPTS, pick_greedy, **OPTIONS) == expected
    assert capsys.readouterr().out.count(f"Decoding without a CUDA graph: {reason}") == 1  # once
    assert decoder.describe().startswith(f"no CUDA graph: {reason}")


def test_short_replies_and_two_at_a_time_are_not_recorded(ready):
    model, clock, attach = ready()
    decoder = attach()
    decode_tokens(model, PROMPTS, pick_greedy, max_new_tokens=4, stops=(), padding=3)
    assert decoder.begin(2, 30)
    decode_tokens(model, PROMPTS, pick_greedy, **OPTIONS)  # beside it
    decoder.end()
    assert clock.recordings == 0
    assert decoder.describe().startswith("no CUDA graph: replies of up to 3 tokens")


def test_nan_does_not_reach_the_next_reply(ready):
    model, _, attach = ready()
    expected = decode_tokens(model, PROMPTS, pick_greedy, **OPTIONS)
    attach()
    decode_tokens(model, PROMPTS, pick_greedy, **OPTIONS)
    hook = model.model.layers[0].self_attn.v_proj.register_forward_hook(lambda *_: torch.full_like(_[2], float("nan")))
    with pytest.raises(NonFiniteLogitsError):
        decode_tokens(model, PROMPTS, pick_greedy, **OPTIONS)
    hook.remove()
    assert decode_tokens(model, PROMPTS, pick_greedy, **OPTIONS) == expected


def test_the_prefix_is_one_graph_for_a_compiler(ready):
    model, _, _ = ready(form=add_prefix)
    expected = decode_tokens(model, PROMPTS, pick_greedy, **OPTIONS)
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_step(model, count)
    assert decode_tokens(model, PROMPTS, pick_greedy, **OPTIONS) == expected
    assert len(graphs) == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()
