"""The batching engine: any request's reply is the one it gets alone, whatever joins, leaves, is cancelled or fails."""

from __future__ import annotations

import contextlib
import random
import threading

import pytest
import torch

import glmtune
from glmtune.config import LoraConfig, PTuningConfig
from glmtune.errors import ConfigError
from glmtune.families import get_family
from glmtune.generation import batch_lane, continuous
from glmtune.generation.adapter_switch import AdapterLane
from glmtune.generation.batch_requests import BatchRequest, FinishEvent, QueueFull, RequestTooLong, TokenEvent
from glmtune.generation.batched import generate_batched
from glmtune.generation.continuous import BatchEngine, EngineClosed
from glmtune.generation.engine import decode_tokens, pick_greedy
from glmtune.generation.prefix_store import PrefixStore, count_common
from glmtune.generation.reply_text import ReplyText, StopStrings
from glmtune.generation.sampling import Sampling
from glmtune.generation.slot_cache import SlotCache
from glmtune.methods.base_info import BaseInfo, write_base_info
from glmtune.methods.lora import Lora
from glmtune.methods.ptuning import PTuning
from glmtune.models.checkpoints import inspect_checkpoint
from glmtune.models.tokenizers.text_decoding import decode_text, make_text_decoder
from tiny import FAMILIES


class Setting:
    """A tiny model and what it says alone."""

    def __init__(self, folder, **load):
        self.folder = folder
        self.tokenizer, self.family = glmtune.load_tokenizer(folder), glmtune.detect_family(folder)
        self.model = glmtune.load_model(folder, **{"dtype": "fp32", "device": "cpu", **load})
        self.stops = self.family.get_stop_ids(self.tokenizer)

    def encode(self, text):
        return self.family.encode_prompt([{"role": "user", "content": text}], self.tokenizer)

    def answer_alone(self, prompt, length, model=None, stops=None):
        stops = self.stops if stops is None else stops
        (ids,) = decode_tokens(
            model or self.model, [prompt], pick_greedy, max_new_tokens=length, stops=stops, padding=3
        )
        return ids[:-1] if ids[-1] in stops else ids

    def start(self, model=None, **options):
        engine = BatchEngine(model or self.model, self.tokenizer, self.family, **options)
        engine.start()
        return contextlib.closing(engine)


class Receiver:
    """Collects the events of a request."""

    def __init__(self, on_token=None):
        self.text, self.ids, self.logprobs, self.end = "", [], [], None
        self._on_token = on_token
        self._done = threading.Event()

    def __call__(self, event):
        assert self.end is None, "an event after the end"
        if isinstance(event, FinishEvent):
            self.end = event
            self._done.set()
            return
        self.text += event.text
        self.ids += event.token_ids
        self.logprobs += event.logprobs or []
        if self._on_token:
            self._on_token(self)

    def wait(self):
        assert self._done.wait(30), "the reply does not end"
        return self


@pytest.fixture(scope="module")
def settings(tiny):
    made = {}

    def get(family):
        if family not in made:
            made[family] = Setting(tiny(family))
        return made[family]

    return get


def answer_all(engine, requests):
    receivers = [Receiver() for _ in requests]
    for request, receiver in zip(requests, receivers, strict=True):
        engine.submit(request, receiver)
    return [receiver.wait() for receiver in receivers]


@pytest.mark.parametrize("family", FAMILIES)
def test_replies_are_those_of_single_requests(family, settings):
    """Joins at random steps, cancels, few slots, prompts that share their beginnings, long prompts in parts."""
    setting, rng = settings(family), random.Random(family)
    texts = ["".join(rng.choices("你好世界上衣牛仔布", k=rng.choice((1, 4, 12, 40)))) for _ in range(8)]
    requests = [
        BatchRequest(setting.encode(rng.choice(texts) + rng.choice(("", "白", "黑"))), rng.randint(1, 24))
        for _ in range(24)
    ]
    with setting.start(max_batch=5) as engine:
        receivers = []
        for number, request in enumerate(requests):
            # Every third request is cancelled after some tokens, and every request joins after some of another's.
            limit, joins = (rng.randint(1, 6) if number % 3 == 2 else None), threading.Event()
            receiver = Receiver(lambda r, n=limit, e=joins: (e.set(), n == len(r.ids) and r.handle.cancel()))
            receiver.handle = None
            with engine._changed:
                receiver.handle = engine.submit(request, receiver)
            receivers.append((receiver, limit))
            if number % 4 == 3:
                joins.wait(0.05)
        for (receiver, limit), request in zip(receivers, requests, strict=True):
            end = receiver.wait().end
            expected = setting.answer_alone(request.input_ids, request.max_new_tokens)
            if end.reason == "cancelled":
                assert limit is not None
                assert receiver.ids == expected[: len(receiver.ids)]
                continue
            assert receiver.ids == expected
            assert end.reason == ("length" if len(expected) == request.max_new_tokens else "stop")
            assert end.completion_tokens == len(expected) + (end.reason == "stop")
            assert receiver.text == decode_text(setting.tokenizer, expected)
        stats = engine.stats()
    assert stats.finished_total == len(requests)
    assert stats.running == stats.waiting == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_in_parts_and_from_the_cache(family, settings, monkeypatch):
    """A long prompt is computed in passes; the next turn of a conversation begins where the last one ended."""
    monkeypatch.setattr(batch_lane, "_PROMPT_TOKENS", 24)
    setting = settings(family)
    first = setting.encode("上衣材质牛仔布颜色白色风格简约" * 4)
    with setting.start() as engine:
        (reply,) = answer_all(engine, [BatchRequest(first, 6, ignore_eos=True)])
        assert reply.ids == setting.answer_alone(first, 6, stops=())
        follow = [*first, *reply.ids, *setting.encode("红色")[-9:]]
        again, other = answer_all(engine, [BatchRequest(follow, 8), BatchRequest([*first[:40], *follow[60:]], 8)])
        assert again.ids == setting.answer_alone(follow, 8)
        assert other.ids == setting.answer_alone([*first[:40], *follow[60:]], 8)
        assert again.end.cached_tokens >= len(first)
        assert again.end.prompt_tokens == len(follow)
        if setting.family.position_streams == 1:
            assert 16 <= other.end.cached_tokens <= 41
        else:  # the context's keys depend on all of it
            assert other.end.cached_tokens == 0
        assert engine.stats().cached_tokens_total == again.end.cached_tokens + other.end.cached_tokens


def test_sampling_depends_on_the_seed_alone(settings):
    setting = settings("chatglm3")
    prompts = [setting.encode(text) for text in ("你好", "上衣", "白色牛仔布")]
    sampling = Sampling(12, temperature=0.9, top_p=0.7, repetition_penalty=1.2)
    expected = generate_batched(
        setting.model, setting.tokenizer, setting.family, prompts, sampling, batch_size=1, seeds=[7, 8, 9]
    )
    with setting.start(max_batch=4) as engine:
        wild = [BatchRequest(prompts[0], 9, temperature=2.0, top_k=5, seed=1), BatchRequest(prompts[1], 5)]
        same = [
            BatchRequest(prompt, 12, temperature=0.9, top_p=0.7, repetition_penalty=1.2, seed=seed)
            for prompt, seed in zip(prompts, (7, 8, 9), strict=True)
        ]
        replies = answer_all(engine, [wild[0], *same, wild[1]])
        assert [reply.ids for reply in replies[1:4]] == [reply.ids for reply in expected]
        assert replies[4].ids == setting.answer_alone(prompts[1], 5)
        assert answer_all(engine, [wild[0]])[0].ids == replies[0].ids
        unseeded = answer_all(engine, [BatchRequest(prompts[0], 12, temperature=5.0) for _ in range(2)])
        assert unseeded[0].ids != unseeded[1].ids


def test_log_probabilities_are_those_of_a_single_run(settings):
    setting = settings("chatglm2")
    prompts = [setting.encode(text) for text in ("你好", "白色牛仔布" * 3)]
    with setting.start() as engine:
        replies = answer_all(
            engine,
            [
                BatchRequest(prompts[0], 6, logprobs=3, logit_bias={5: 30.0}, ignore_eos=True),
                BatchRequest(prompts[1], 6, logprobs=0, ignore_eos=True),
                BatchRequest(prompts[1], 6),
            ],
        )
    assert replies[0].ids == [5] * 6  # biases choose; probabilities are the model's
    assert replies[2].logprobs == []
    for prompt, reply, count in zip(prompts, replies, (3, 0), strict=False):
        ids = torch.tensor([[*prompt, *reply.ids]])
        with torch.no_grad():
            expected_TV = setting.model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        for row_V, token, found in zip(expected_TV, reply.ids, reply.logprobs, strict=True):
            assert found.token_id == token
            assert found.logprob == pytest.approx(float(row_V[token]), abs=1e-5)
            assert [i for i, _ in found.top] == row_V.topk(count).indices.tolist() if count else not found.top
            assert [v for _, v in found.top] == pytest.approx(
                row_V.topk(count).values.tolist() if count else [], abs=1e-5
            )


def test_penalties_keep_tokens_from_coming_again(settings):
    setting = settings("chatglm3")
    prompt = setting.encode("你好")
    plain = setting.answer_alone(prompt, 20, stops=())
    with setting.start() as engine:
        presence, frequency, greedy = answer_all(
            engine,
            [
                BatchRequest(prompt, 20, presence_penalty=1000.0, ignore_eos=True),
                BatchRequest(prompt, 20, frequency_penalty=1000.0, ignore_eos=True),
                BatchRequest(prompt, 20, ignore_eos=True),
            ],
        )
    assert len(set(plain)) < 20
    assert greedy.ids == plain
    assert len(set(presence.ids)) == len(set(frequency.ids)) == 20


def test_stop_strings_end_a_reply_before_them(settings):
    setting = settings("glm4")
    prompt = setting.encode("你好")
    ids = setting.answer_alone(prompt, 30, stops=())
    text = setting.tokenizer.decode(ids, skip_special_tokens=True)
    place = len(text) // 2
    stop = text[place : place + 3]
    with setting.start() as engine:
        stopped, missed = answer_all(
            engine,
            [
                BatchRequest(prompt, 30, stop=["never", stop], ignore_eos=True),
                BatchRequest(prompt, 30, stop=[text[-2:] + "x"], ignore_eos=True),
            ],
        )
    assert stopped.end.reason == "stop"
    assert stopped.text == text[: text.index(stop)]
    assert stopped.end.completion_tokens < 30
    assert missed.end.reason == "length"
    assert missed.text == text


def test_pieces_are_whole_characters(settings):
    tokenizer = settings("chatglm3").tokenizer
    text = "你好 👩‍🚀 world\n龘龘\n  x" * 5
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    window = ReplyText(make_text_decoder(tokenizer))
    pieces = [window.add([token]) for token in ids] + [window.finish()]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) > 20
    stops = StopStrings(["龘\n"])
    assert "".join(stops.add(piece) for piece in pieces) == text[: text.index("龘\n")]


@pytest.fixture
def adapters(tiny, tmp_path):
    """`adapters(family)`: folders of two LoRA adapters with different targets, one of DoRA and one of P-Tuning."""

    def write(family):
        folders, info = {}, BaseInfo(str(tiny(family)), inspect_checkpoint(str(tiny(family))).fingerprint, family)
        kinds = {
            "one": LoraConfig(rank=4, alpha=32),
            "two": LoraConfig(rank=2, alpha=64, targets=["dense", "dense_h_to_4h"], rslora=True),
            "dora": LoraConfig(rank=2, alpha=32, dora=True),
            "prefix": PTuningConfig(5, False),
        }
        for number, (name, config) in enumerate(kinds.items()):
            model = glmtune.load_model(tiny(family), dtype="fp32", device="cpu")
            torch.manual_seed(number)
            is_prefix = isinstance(config, PTuningConfig)
            method = PTuning(config) if is_prefix else Lora(config, get_family(family))
            model = method.prepare(model)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    scale = 3.0 if is_prefix else 0.3
                    parameter.data = torch.randn_like(parameter) * scale + (parameter.data if name == "dora" else 0)
            method.save(model, tmp_path / name, info)
            folders[name] = str(tmp_path / name)
        return folders

    return write


@pytest.mark.parametrize("family", ["chatglm", "glm4"])
@pytest.mark.parametrize("loaded", [None, "one", "prefix"])
def test_each_row_has_its_own_adapter(family, loaded, tiny, settings, adapters, tmp_path):
    folders = adapters(family)
    setting = Setting(tiny(family))
    prompt = setting.encode("白色牛仔布")
    expected = {
        name: setting.answer_alone(prompt, 10, stops=(), model=glmtune.load_model(tiny(family), path, dtype="fp32"))
        for name, path in folders.items()
    }
    expected[None] = expected[loaded] if loaded else setting.answer_alone(prompt, 10, stops=())
    assert len({tuple(ids) for ids in expected.values()}) == 5 - bool(loaded)
    names = {name: path for name, path in folders.items() if name != loaded}
    model = glmtune.load_model(tiny(family), folders[loaded], dtype="fp32") if loaded else setting.model
    order = [None, *names, *names, None, *names]
    with setting.start(model, adapters=names) as engine:
        replies = answer_all(engine, [BatchRequest(prompt, 10, adapter=name, ignore_eos=True) for name in order])
        for name, reply in zip(order, replies, strict=True):
            assert reply.ids == expected[name], name
        with pytest.raises(ValueError, match="there is no adapter 'three'"):
            engine.submit(BatchRequest(prompt, 4, adapter="three"), Receiver())
    assert setting.answer_alone(prompt, 10, stops=(), model=model) == expected[None]


def test_an_adapter_of_another_base_is_refused(tiny, settings, adapters, tmp_path):
    folder = adapters("chatglm3")["one"]
    write_base_info(tmp_path / "one", BaseInfo("x", "other", "chatglm3"))
    with pytest.raises(glmtune.errors.RunError, match="fingerprint other"):
        Setting(tiny("chatglm3")).start(adapters={"a": folder})


def test_plain_adapters_share_a_batch(tiny, adapters):
    folders = adapters("glm4")
    with Setting(tiny("glm4")).start(adapters=folders) as engine:
        lanes = [engine._switch.get_lane(name) for name in (None, "one", "two", "dora", "prefix")]
    assert [*lanes[:3], lanes[4]] == [AdapterLane()] * 4
    assert lanes[3] != AdapterLane()


def test_biases_that_several_models_share_are_refused(tiny, tmp_path):
    model = glmtune.load_model(tiny("glm4"), dtype="fp32", device="cpu")
    lora = Lora(LoraConfig(rank=2, bias="all"), get_family("glm4"))
    info = BaseInfo(str(tiny("glm4")), inspect_checkpoint(str(tiny("glm4"))).fingerprint, "glm4")
    lora.save(lora.prepare(model), tmp_path / "bias", info)
    with pytest.raises(ConfigError, match="biases"):
        Setting(tiny("glm4")).start(adapters={"bias": str(tmp_path / "bias")})


@pytest.mark.parametrize("quantization", ["packed4", "int8"])
def test_quantised_models(quantization, tiny):
    setting = Setting(tiny("chatglm2"), quantization=quantization)
    prompts = [setting.encode(text) for text in ("你好", "白色牛仔布")]
    with setting.start() as engine:
        replies = answer_all(engine, [BatchRequest(prompt, 8) for prompt in prompts])
    assert [reply.ids for reply in replies] == [setting.answer_alone(prompt, 8) for prompt in prompts]


def test_a_bad_request_harms_no_other(settings, monkeypatch):
    """A prompt and a step that the model cannot compute, NaN, and a receiver that raises."""
    setting = settings("chatglm3")
    good = [setting.encode(text) for text in ("你好", "白色牛仔布", "上衣")]
    poison, late, broken = [*good[0], 600], [*good[1], 601], [*good[2], 602]
    run = batch_lane.BatchLane._run_layers

    def run_layers(self, rows, *args):
        starts = [row.ids[: row._prompt_tokens] for row in rows]
        if poison in starts or any(row.new_tokens > 2 and row.ids[: row._prompt_tokens] == late for row in rows):
            raise RuntimeError("poison")
        hidden = run(self, rows, *args)
        for place, start in enumerate(starts):
            if start == broken:
                hidden[place] = torch.nan
        return hidden

    monkeypatch.setattr(batch_lane.BatchLane, "_run_layers", run_layers)

    def raise_later(receiver):
        if len(receiver.ids) == 2:
            raise KeyError("receiver")

    rude = Receiver(raise_later)
    with setting.start() as engine:
        with engine._changed:
            prompts = [good[0], poison, good[1], late, broken, good[2]]
            receivers = [Receiver() for _ in prompts]
            for prompt, receiver in zip(prompts, receivers, strict=True):
                engine.submit(BatchRequest(prompt, 12), receiver)
            engine.submit(BatchRequest(good[0], 12), rude)
        replies = [receiver.wait() for receiver in receivers]
        assert [reply.end.reason for reply in replies if reply.end.reason == "error"] == ["error"] * 3
        for place in (0, 2, 5):
            assert replies[place].ids == setting.answer_alone(prompts[place], 12)
        assert "poison" in replies[1].end.error
        assert "not finite" in replies[4].end.error
        assert replies[3].ids == setting.answer_alone(late, 12)[:3]
        assert rude.wait().end.reason == "error"
        assert answer_all(engine, [BatchRequest(good[1], 12)])[0].ids == setting.answer_alone(good[1], 12)


def test_without_memory_requests_wait_again(settings, monkeypatch):
    setting = settings("chatglm3")
    prompts = [setting.encode("上衣" * n) for n in (1, 2, 3, 4)]
    run, sizes = batch_lane.BatchLane._run_layers, []

    def run_layers(self, rows, *args):
        sizes.append(len(rows))
        if len(self.rows) > 2 and rows[0].new_tokens > 3:
            raise torch.OutOfMemoryError("out of memory")
        return run(self, rows, *args)

    monkeypatch.setattr(batch_lane.BatchLane, "_run_layers", run_layers)
    with setting.start() as engine:
        replies = answer_all(engine, [BatchRequest(p, 10, temperature=1.0, seed=3, ignore_eos=True) for p in prompts])
        got = [reply.ids for reply in replies]
    monkeypatch.undo()
    with setting.start() as engine:
        requests = [BatchRequest(p, 10, temperature=1.0, seed=3, ignore_eos=True) for p in prompts]
        assert got == [answer_all(engine, [request])[0].ids for request in requests]
    assert max(sizes) > 2


def test_queue_limits_and_requests_that_cannot_be(settings):
    setting = settings("chatglm3")
    prompt = setting.encode("你好")
    blocked, go = threading.Event(), threading.Event()
    first = Receiver(lambda _: (blocked.set(), go.wait(20)))
    with setting.start(max_batch=1, max_queue=2, max_context=40) as engine:
        engine.submit(BatchRequest(prompt, 3), first)
        assert blocked.wait(20)
        waiting = [Receiver(), Receiver()]
        handles = [engine.submit(BatchRequest(prompt, 3), receiver) for receiver in waiting]
        with pytest.raises(QueueFull):
            engine.submit(BatchRequest(prompt, 3), Receiver())
        assert engine.stats().waiting == 2
        handles[1].cancel()
        go.set()
        assert waiting[1].wait().end.reason == "cancelled"
        assert waiting[1].end.completion_tokens == 0
        assert waiting[0].wait().ids == first.wait().ids
        handles[0].cancel()  # after its end: nothing
        long = Receiver()
        engine.submit(BatchRequest(prompt, 1000, ignore_eos=True), long)
        assert len(long.wait().ids) == 40 - len(prompt)
        with pytest.raises(RequestTooLong) as caught:
            engine.submit(BatchRequest(prompt * 10, 3), Receiver())
        assert (caught.value.prompt_tokens, caught.value.limit) == (10 * len(prompt), 40)
        for request, message in (
            (BatchRequest([], 3), "empty"),
            (BatchRequest([10**6], 3), "is not one of them"),
            (BatchRequest([-1], 3), "is not one of them"),
            (BatchRequest(prompt, 3, logit_bias={10**6: 1.0}), "is not one of them"),
            (BatchRequest(prompt, 0), "max_new_tokens"),
        ):
            with pytest.raises(ValueError, match=message):
                engine.submit(request, Receiver())


def test_draining_finishes_what_was_accepted(settings):
    setting = settings("chatglm3")
    prompt = setting.encode("你好")
    with setting.start(max_batch=2) as engine:
        receivers = [Receiver() for _ in range(5)]
        for receiver in receivers:
            engine.submit(BatchRequest(prompt, 10, ignore_eos=True), receiver)
        assert not engine.drain(0)
        with pytest.raises(EngineClosed):
            engine.submit(BatchRequest(prompt, 10), Receiver())
        assert engine.drain(30)
        assert [len(receiver.ids) for receiver in receivers] == [10] * 5
    with setting.start() as engine:
        endless = Receiver()
        engine.submit(BatchRequest(prompt, 10**6, ignore_eos=True), endless)
        queued = Receiver()
        engine.submit(BatchRequest(prompt, 10**6, ignore_eos=True), queued)
    assert {endless.wait().end.reason, queued.wait().end.reason} <= {"cancelled", "length"}
    assert setting.answer_alone(prompt, 4)  # the model is as it was


def test_the_store_keeps_to_its_bytes_and_finds_the_longest_beginning():
    store = PrefixStore(4 * 80)

    def states(tokens):
        return torch.zeros(1, 1, 1, tokens, 1)

    store.add("a", range(40), states(40))
    store.add("a", [*range(20), *range(100, 120)], states(40))
    assert store.nbytes == 4 * 80
    entry, length = store.find("a", [*range(38), 7])
    assert (entry.ids[-1], length) == (39, 38)
    assert store.find("b", range(40)) is None
    assert store.find("a", [1, *range(40)]) is None
    store.add("a", range(60), states(60))  # continues the first one, and leaves no room for the second
    assert len(store) == 1
    assert store.find("a", range(60))[1] == 60
    store.add("a", range(100), states(100))  # too large
    assert store.find("a", range(100))[1] == 60
    store.clear()
    assert store.find("a", range(60)) is None


def test_common_beginnings_of_any_length():
    for length in (0, 1, 127, 128, 129, 300):
        ids = list(range(length))
        assert count_common(ids, ids) == length
        assert count_common([*ids, 1, 2], [*ids, 5]) == length
        assert count_common(ids, [*ids, 5, 6]) == count_common([*ids, *range(500)], ids) == length


def test_events_carry_tokens(settings):
    """A token whose text is not complete yet has an event too."""
    setting = settings("chatglm3")
    events = []
    done = threading.Event()
    prompt = setting.encode("你好")
    with setting.start() as engine:
        engine.submit(
            BatchRequest(prompt, 9, ignore_eos=True),
            lambda event: (events.append(event), isinstance(event, FinishEvent) and done.set()),
        )
        assert done.wait(20)
    assert [type(event) for event in events] == [TokenEvent] * 9 + [FinishEvent]
    assert all(len(event.token_ids) == 1 for event in events[:-1])


def test_slots_grow_and_do_not_stay_as_long_as_a_row_that_left():
    torch.manual_seed(0)
    cache, rows = SlotCache(1), {}

    def extend(start, new):
        past = [rows[start + number].shape[1] for number in range(len(new))]
        cache.reserve(max(len(rows), start + len(new)), max(p + n for p, n in zip(past, new, strict=True)))
        cache.select(start, past, new)
        states = torch.randn(len(new), 2, max(new), 4)
        keys, _ = cache.update(states, states, 0)
        for number, count in enumerate(new):
            rows[start + number] = torch.cat((rows[start + number], states[number, :, :count]), dim=1)
            assert torch.equal(keys[number, :, : rows[start + number].shape[1]], rows[start + number])

    rows |= {number: torch.zeros(2, 0, 4) for number in range(2)}
    extend(0, [1000, 3])
    extend(0, [600, 1])
    assert cache.nbytes == 2 * 2 * 2 * 1664 * 4 * 4
    cache.move(1, 0, 4)
    rows = {0: rows[1]}
    rows |= {number: torch.zeros(2, 0, 4) for number in range(1, 8)}
    extend(1, [5, 6, 7, 5, 6, 7, 8])
    extend(0, [1])
    assert cache.nbytes == 8 * 2 * 2 * 128 * 4 * 4
    cache.release()
    assert cache.nbytes == 0


def test_memory_is_given_back_when_no_request_comes(settings, monkeypatch):
    monkeypatch.setattr(continuous, "_IDLE_S", 0.05)
    setting = settings("chatglm3")
    with setting.start() as engine:
        answer_all(engine, [BatchRequest(setting.encode("你好"), 4)])
        for _ in range(200):
            if engine.stats().cache_bytes == 0:
                break
            threading.Event().wait(0.05)
        assert engine.stats().cache_bytes == 0
        assert answer_all(engine, [BatchRequest(setting.encode("你好"), 4)])[0].ids
