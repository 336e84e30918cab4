"""The tab `Chat`: one model, or two side by side on the same message."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from html import escape
from typing import Any

import gradio as gr

from glmtune.errors import ConfigError, GlmtuneError
from glmtune.generation.context_window import get_default_reply_length
from glmtune.generation.reply import Sampling
from glmtune.webui.chat_models import HeldModels
from glmtune.webui.context import Context
from glmtune.webui.conversation import Messages, answered, asked, read_tools, shown, stream, unanswered
from glmtune.webui.errors import as_html
from glmtune.webui.paths import model_or_path
from glmtune.webui.pick import renewed, short, targets, this_tab
from glmtune.webui.texts import text
from glmtune.webui.words import Words

_DEFAULT = Sampling()


@dataclass(frozen=True)
class _Settings:
    """What stands in the fields, in the order of `_settings`."""

    system: str
    max_new_tokens: float
    temperature: float
    top_p: float
    repetition_penalty: float
    seed: float | None
    """Negative, or an emptied field: none."""
    tools: str

    def sampling(self) -> Sampling:
        return Sampling(int(self.max_new_tokens), self.temperature, self.top_p, self.repetition_penalty)

    def seed_or_none(self) -> int | None:
        return None if self.seed is None or self.seed < 0 else int(self.seed)


@dataclass
class _Side:
    """One of the two conversations."""

    target: str
    messages: Messages
    piece: str | None = None
    """The reply so far."""
    dropped: int = 0
    """Number of messages that the model's context window had no room for."""


class Talk:
    """Answers for the tab; a server has one.

    Args:
        context: the server's settings.
        models: what is in memory.
    """

    def __init__(self, context: Context, models: HeldModels):
        self._context = context
        self._models = models
        self._stops: dict[str, threading.Event] = {}

    def stop(self, request: gr.Request) -> None:
        """End the reply that this page is waiting for."""
        if request.session_hash in self._stops:
            self._stops[request.session_hash].set()

    def send(
        self,
        prompt: str,
        is_result: bool,
        lang: str,
        first: str | None,
        both: bool,
        second: str | None,
        first_messages: Messages,
        second_messages: Messages,
        *settings: Any,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        """Put a message to one model or to both; yields values for the message's field, both chats, both
        kept conversations and the status line."""
        before = [first_messages, second_messages]
        try:
            sides = self._sides(first, both, second, before, lang)
            for side in sides:
                side.messages = asked(side.messages, prompt, is_result)
        except GlmtuneError as error:
            yield [gr.skip()] * 5 + [as_html(error)]
            return
        yield from self._answer(sides, before, prompt, lang, _Settings(*settings), request)

    def again(
        self,
        _prompt: str,
        _is_result: bool,
        lang: str,
        first: str | None,
        both: bool,
        second: str | None,
        first_messages: Messages,
        second_messages: Messages,
        *settings: Any,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        """Make the last reply anew; takes and yields the same as `send`."""
        before = [first_messages, second_messages]
        try:
            sides = self._sides(first, both, second, before, lang)
            for side in sides:
                side.messages = unanswered(side.messages)
        except GlmtuneError as error:
            yield [gr.skip()] * 5 + [as_html(error)]
            return
        yield from self._answer(sides, before, "", lang, _Settings(*settings), request)

    def _sides(
        self, first: str | None, both: bool, second: str | None, messages: list[Messages], lang: str
    ) -> list[_Side]:
        chosen = [first, second] if both else [first]
        if not all(chosen):
            raise ConfigError(text("chat.no_model", lang))
        named = [model_or_path(self._context.roots, str(target)) for target in chosen]
        return [_Side(target, said) for target, said in zip(named, messages, strict=False)]

    def _answer(
        self,
        sides: list[_Side],
        before: list[Messages],
        prompt: str,
        lang: str,
        settings: _Settings,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        page = str(request.session_hash)
        stopped = self._stops[page] = threading.Event()
        start, problems = time.monotonic(), []
        for number, side in enumerate(sides):
            if stopped.is_set():
                side.messages = before[number]
                continue
            name = escape(short(self._context, side.target))
            try:
                for _ in self._reply(side, settings, stopped):
                    # What is kept changes at the end only, so that a reply that breaks off leaves no question behind.
                    yield ["", *_chats(sides, before), gr.skip(), gr.skip(), text("chat.answering", lang, name=name)]
            except GlmtuneError as error:
                side.messages, side.piece = before[number], None
                problems.append(as_html(error))
        seconds = f"{time.monotonic() - start:.1f}"
        ended = text("chat.stopped", lang) if stopped.is_set() else text("chat.done", lang, seconds=seconds)
        notes = [text("chat.dropped", lang, count=side.dropped) for side in sides if side.dropped]
        ended = "<br>".join([ended, *notes])
        self._stops.pop(page, None)
        # A message that nobody answered goes back to where it was written.
        kept = prompt if len(problems) == len(sides) else ""
        messages = [side.messages for side in sides] + before[len(sides) :]
        yield [kept, *_chats(sides, before), *messages, "<br>".join(problems) or ended]

    def _reply(self, side: _Side, settings: _Settings, stopped: threading.Event) -> Iterator[None]:
        side.piece = ""
        yield
        tools = read_tools(settings.tools)

        def count_dropped(count: int) -> None:
            side.dropped = count

        with self._models.answering(side.target) as opened:
            sampling = settings.sampling()
            if sampling.max_new_tokens == _DEFAULT.max_new_tokens:
                sampling = replace(sampling, max_new_tokens=get_default_reply_length(opened.model))
            for piece in stream(
                *(opened, side.messages, sampling, stopped),
                system=settings.system.strip(),
                tools=tools,
                seed=settings.seed_or_none(),
                on_drop=count_dropped,
            ):
                if isinstance(piece, str):
                    side.piece = piece
                    yield
                else:
                    side.messages, side.piece = answered(side.messages, piece), None
        yield


def _chats(sides: list[_Side], before: list[Messages]) -> list[list[dict[str, str]]]:
    """What both conversations show; perhaps only the first takes part."""
    return [shown(side.messages, side.piece) for side in sides] + [shown(said) for said in before[len(sides) :]]


def build(context: Context, words: Words, lang: gr.State) -> None:
    """Put the tab's components onto the page."""
    talk = Talk(context, HeldModels())
    words.add(gr.Markdown(elem_classes="intro"), value="chat.intro")
    first, both, second = _models(context, words)
    histories = [gr.State([]), gr.State([])]
    with gr.Row():
        chats = [_chat(words, "chat.first", "chat-first"), _chat(words, "chat.second", "chat-second", visible=False)]
    status = gr.HTML("", elem_id="chat-status", elem_classes="status")
    prompt = words.add(
        gr.Textbox("", lines=1, max_lines=8, elem_id="chat-prompt"), label="chat.prompt", placeholder="chat.prompt.hint"
    )
    with gr.Row():
        send = words.add(gr.Button(variant="primary", elem_id="chat-send"), value="chat.send")
        stop = words.add(gr.Button(elem_id="chat-stop"), value="chat.stop")
        again = words.add(gr.Button(elem_id="chat-again"), value="chat.again")
        clear = words.add(gr.Button(elem_id="chat-clear"), value="chat.clear")
    settings = _settings(words)
    tools, is_result = _tools(words)
    inputs = [prompt, is_result, lang, first, both, second, *histories, *settings, tools]
    outputs = [prompt, *chats, *histories, status]
    for event, answer in ((send.click, talk.send), (prompt.submit, talk.send), (again.click, talk.again)):
        # The lock in HeldModels decides whose turn it is; a page that waits says so.
        event(_with_request(answer), inputs, outputs, show_progress="hidden", concurrency_limit=8)
    stop.click(talk.stop, None, None, queue=False, show_progress="hidden")
    clear.click(lambda: [[], [], [], [], ""], None, [*chats, *histories, status], show_progress="hidden")
    for chat, history in zip(chats, histories, strict=True):
        chat.clear(lambda: [], None, history, show_progress="hidden")
    both.change(lambda on: [gr.update(visible=on)] * 2, both, [second, chats[1]], show_progress="hidden")


def _with_request(answer: Any) -> Any:
    """Gradio looks for the request among the positional parameters, which end in the settings here."""

    def call(request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        yield from answer(*values, request=request)

    return call


def _models(context: Context, words: Words) -> tuple[gr.Dropdown, gr.Checkbox, gr.Dropdown]:
    with gr.Row():
        first = _target(words, "chat.model", "chat-model")
        second = _target(words, "chat.other", "chat-other", visible=False)
        both = words.add(
            gr.Checkbox(False, elem_id="chat-both", scale=1, min_width=180), label="chat.both", info="chat.both.info"
        )
        refresh = words.add(gr.Button(size="sm", scale=0, min_width=130, elem_id="chat-refresh"), value="chat.refresh")

    def reread(one: str | None, other: str | None) -> list[Any]:
        found = targets(context)
        return [renewed(found, one, first=True), renewed(found, other)]

    for event in (refresh.click, this_tab().select):
        event(reread, [first, second], [first, second], show_progress="hidden")
    return first, both, second


def _target(words: Words, label: str, name: str, visible: bool = True) -> gr.Dropdown:
    dropdown = gr.Dropdown([], value=None, allow_custom_value=True, elem_id=name, visible=visible, scale=3)
    return words.add(dropdown, label=label, info=f"{label}.info")


def _chat(words: Words, label: str, name: str, visible: bool = True) -> gr.Chatbot:
    # No button to copy: it would copy the escaped text.
    chat = gr.Chatbot(
        elem_id=name, visible=visible, height=420, render_markdown=False, buttons=[], feedback_options=None
    )
    return words.add(chat, label=label, placeholder="chat.empty")


def _settings(words: Words) -> list[Any]:
    """The fields of `_Settings`, without its last one."""
    with words.add(gr.Accordion(open=False), label="chat.settings"):
        system = words.add(gr.Textbox("", lines=2), label="chat.system", placeholder="chat.system.hint")
        with gr.Row():
            tokens = words.add(
                gr.Number(_DEFAULT.max_new_tokens, minimum=1, maximum=8192, precision=0, elem_id="chat-tokens"),
                label="chat.tokens",
            )
            temperature = words.add(
                gr.Slider(0, 2, _DEFAULT.temperature, step=0.05), label="chat.temperature", info="chat.temperature.info"
            )
            top_p = words.add(gr.Slider(0, 1, _DEFAULT.top_p, step=0.05), label="chat.top_p", info="chat.top_p.info")
            penalty = words.add(
                gr.Slider(1, 2, _DEFAULT.repetition_penalty, step=0.05), label="chat.penalty", info="chat.penalty.info"
            )
            seed = words.add(gr.Number(-1, minimum=-1, precision=0), label="chat.seed", info="chat.seed.info")
    chosen = [system, tokens, temperature, top_p, penalty, seed]
    assert len(chosen) + 1 == len(fields(_Settings))
    return chosen


def _tools(words: Words) -> tuple[gr.Textbox, gr.Checkbox]:
    with words.add(gr.Accordion(open=False), label="chat.tools"):
        tools = words.add(
            gr.Textbox("", lines=4, max_lines=16, elem_id="chat-tools", elem_classes="code"),
            label="chat.tools.json",
            info="chat.tools.info",
        )
        is_result = words.add(gr.Checkbox(False, elem_id="chat-result"), label="chat.result")
    return tools, is_result
