"""`chat` and `stream_chat` as the published code has them: same arguments, same defaults, same history.

Prompts are those of training and `glmtune chat` (`family.encode_prompt`), tokens come from the same decoding loop, and
a tool call that the model writes is parsed, never run.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor, TopKLogitsWarper

from glmtune.errors import ConfigError, DataError, ModelError
from glmtune.families import FAMILY_KEY, Family, Message, family_from_config, get_family
from glmtune.generation.context_window import fit_prompt, get_context_window, get_default_reply_length
from glmtune.generation.engine import stream_tokens
from glmtune.generation.sampling import Sampling, make_sampler
from glmtune.models.tokenizers.text_decoding import decode_text
from glmtune.utils.console import count_noun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class PublishedChat:
    """What is particular to `chat` of one generation."""

    arguments: tuple[str, ...]
    """What may follow `history` by position."""
    stream_arguments: tuple[str, ...]
    """The same of `stream_chat`."""
    max_length: int
    """Default of the longest prompt and reply together."""
    temperature: float = 0.8
    top_p: float = 0.8
    has_roles: bool = False
    """Whether the history is a list of messages with role and content; else it is one of pairs."""
    tools_in_text: bool = False
    """Whether tools of a system message are written behind its text; else the family lists them."""
    widens_punctuation: bool = False
    """Whether punctuation beside Chinese characters is replaced by its full-width form in replies."""


_SAMPLING = ("do_sample", "top_p", "temperature", "logits_processor")
_ROLE_ARGUMENTS = ("role", "max_length", "num_beams", *_SAMPLING)
_ROLE_STREAM_ARGUMENTS = ("role", "past_key_values", "max_length", *_SAMPLING, "return_past_key_values")
_CHATS = {
    "chatglm": PublishedChat(
        ("max_length", "num_beams", *_SAMPLING),
        ("max_length", *_SAMPLING),
        max_length=2048,
        temperature=0.95,
        top_p=0.7,
        widens_punctuation=True,
    ),
    "chatglm2": PublishedChat(
        ("max_length", "num_beams", *_SAMPLING),
        ("past_key_values", "max_length", *_SAMPLING, "return_past_key_values"),
        max_length=8192,
    ),
    "chatglm3": PublishedChat(
        _ROLE_ARGUMENTS, _ROLE_STREAM_ARGUMENTS, max_length=8192, has_roles=True, tools_in_text=True
    ),
    "glm4": PublishedChat(_ROLE_ARGUMENTS, _ROLE_STREAM_ARGUMENTS, max_length=32768, has_roles=True),
}
_EXTRA_ARGUMENTS = ("max_new_tokens", "top_k", "repetition_penalty", "num_beams")
# Both forms of five marks; only those beside a Chinese character change.
_WIDE = {",": "，", "!": "！", ":": "：", ";": "；", "?": "？"}
# What an unfinished character is decoded to.
_UNFINISHED = "\ufffd"


@dataclass
class _ChatSettings:
    """The arguments of one call."""

    role: str = "user"
    max_length: int = 0
    max_new_tokens: int | None = None
    do_sample: bool = True
    top_p: float = 1.0
    top_k: int | None = None
    temperature: float = 1.0
    repetition_penalty: float = 1.0
    logits_processor: Any = None
    return_past_key_values: bool = False


@dataclass
class _ChatTurn:
    """A query that is to be answered."""

    family: Family
    published: PublishedChat
    tokenizer: PreTrainedTokenizerBase
    settings: _ChatSettings
    messages: Messages
    """The history and the query."""
    ids: list[int] = field(default_factory=list)
    """Of the reply so far."""


def answer_query(
    model: Any, tokenizer: Any, query: str, history: Any, arguments: Sequence[Any], options: dict[str, Any]
) -> tuple[Any, list[Any]]:
    """See `chat` of `model_methods`."""
    turn = _open_turn(model, tokenizer, query, history, arguments, options, is_stream=False)
    for ids in _generate(model, turn):
        turn.ids = ids
    return _read_reply(turn)


def stream_answer(
    model: Any, tokenizer: Any, query: str, history: Any, arguments: Sequence[Any], options: dict[str, Any]
) -> Iterator[Any]:
    """See `stream_chat` of `model_methods`; wrong arguments are refused before the first step."""
    turn = _open_turn(model, tokenizer, query, history, arguments, options, is_stream=True)
    return _stream_replies(model, turn)


def _stream_replies(model: Any, turn: _ChatTurn) -> Iterator[Any]:
    end = (None,) if turn.settings.return_past_key_values else ()
    is_complete = False
    for ids in _generate(model, turn):
        turn.ids = ids
        text = _decode(turn)
        is_complete = bool(text) and not text.endswith(_UNFINISHED)
        if is_complete:
            yield (*_read_reply(turn), *end)
    if not is_complete:
        yield (*_read_reply(turn), *end)


def _open_turn(
    model: Any,
    tokenizer: Any,
    query: str,
    history: Any,
    arguments: Sequence[Any],
    options: dict[str, Any],
    *,
    is_stream: bool,
) -> _ChatTurn:
    family = find_model_family(model)
    published = _CHATS[family.name]
    if not isinstance(query, str):
        raise DataError(f"chat: the query is a {type(query).__name__}, not text.", "chat(tokenizer, query, history)")
    settings = _read_settings(published, arguments, options, is_stream)
    messages = [*_read_history(history or [], published), {"role": settings.role, "content": query}]
    return _ChatTurn(family, published, tokenizer, settings, messages)


def find_model_family(model: Any) -> Family:
    """The generation of a loaded model.

    Raises:
        ModelError: its config does not say.
    """
    name = getattr(model.config, FAMILY_KEY, None)
    if name:
        return get_family(name)
    source = str(getattr(model.config, "_name_or_path", "") or "")
    return family_from_config(model.config.to_dict(), names=[source], where=source or "the model's config")


def _read_settings(
    published: PublishedChat, arguments: Sequence[Any], options: dict[str, Any], is_stream: bool
) -> _ChatSettings:
    names = published.stream_arguments if is_stream else published.arguments
    if len(arguments) > len(names):
        raise ConfigError(
            f"chat: {len(arguments)} arguments after the history; there are {len(names)}.",
            f"They are {', '.join(names)}.",
        )
    given = dict(zip(names, arguments, strict=False))
    known = {*names, *_EXTRA_ARGUMENTS}
    faults = sorted({key for key in options if key not in known} | (given.keys() & options.keys()))
    if faults:
        twice = [key for key in faults if key in given]
        what = f"{', '.join(twice)} given twice" if twice else f"unknown argument {', '.join(faults)}"
        raise ConfigError(f"chat: {what}.", f"Known: {', '.join(sorted(known))}.")
    given |= options
    if given.pop("num_beams", 1) not in (None, 1):
        raise ConfigError("chat: num_beams: beam search is not supported.", "Leave it out, or give 1.")
    if given.pop("past_key_values", None) is not None:
        raise ConfigError(
            "chat: past_key_values holds states of another call, which are not continued.",
            "Give the history; the conversation is read from its start, with the same reply.",
        )
    defaults = {"max_length": published.max_length, "temperature": published.temperature, "top_p": published.top_p}
    settings = _ChatSettings(**defaults | {key: value for key, value in given.items() if value is not None})
    _check_settings(settings)
    return settings


def _check_settings(settings: _ChatSettings) -> None:
    limits = {
        "max_length": (1, math.inf, int),
        "max_new_tokens": (1, math.inf, int),
        "top_k": (0, math.inf, int),
        "top_p": (0, 1, float),
        "temperature": (0, math.inf, float),
        "repetition_penalty": (0, math.inf, float),
    }
    for name, (least, most, kind) in limits.items():
        value = getattr(settings, name)
        if value is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not least <= value <= most or (kind is int and value != int(value)):
            bounds = f"{least} to {most}" if most < math.inf else f"{least} or more"
            raise ConfigError(f"chat: {name} is {value!r}.", f"It is a number, {bounds}.")
    if settings.do_sample and not settings.temperature:
        raise ConfigError("chat: temperature is 0, with which nothing can be sampled.", "Give do_sample=False.")
    if not settings.repetition_penalty:
        raise ConfigError("chat: repetition_penalty is 0.", "1 means none.")


def _read_history(history: Any, published: PublishedChat) -> Messages:
    """Messages of a history in either form."""
    if not isinstance(history, list | tuple):
        raise DataError(f"chat: the history is a {type(history).__name__}, not a list.", _describe_history(published))
    messages: Messages = []
    for number, item in enumerate(history, start=1):
        if isinstance(item, dict) and isinstance(item.get("role"), str) and "content" in item:
            messages.append(dict(item))
        elif isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(text, str) for text in item):
            messages += [{"role": "user", "content": item[0]}, {"role": "assistant", "content": item[1]}]
        else:
            raise DataError(f"chat: entry {number} of the history is no turn.", _describe_history(published))
    return messages


def _describe_history(published: PublishedChat) -> str:
    if published.has_roles:
        return 'Give the history that chat() returned: [{"role": "user", "content": "..."}, ...].'
    return "Give the history that chat() returned: [(question, answer), ...]."


def _generate(model: Any, turn: _ChatTurn) -> Iterator[list[int]]:
    """The ids of the reply, longer by one each time, without the stop id."""
    family, settings = turn.family, turn.settings
    tokenizer: Any = turn.tokenizer
    prompt, limit = _fit_history(model, turn)
    stops = family.get_stop_ids(tokenizer)
    ids: list[int] = []
    for new in stream_tokens(
        model,
        [prompt],
        _make_choice(settings, model.device),
        max_new_tokens=limit,
        stops=stops,
        padding=tokenizer.pad_token_id,
    ):
        if new[0] in stops:
            return
        ids = [*ids, new[0]]
        yield ids


def _fit_history(model: Any, turn: _ChatTurn) -> tuple[list[int], int]:
    """Encode the conversation, without its oldest turns where it would not fit, and count the tokens of its reply.

    Returns:
        The ids of the prompt, and the most tokens that the reply may have.

    Raises:
        ModelError: the query alone does not fit into the context window.
        DataError: it does not fit into `max_length`.
    """
    settings = turn.settings
    messages, tools = _separate_tools(turn)

    def encode(turns: Sequence[Message]) -> list[int]:
        return turn.family.encode_prompt(turns, turn.tokenizer, tools)

    window = get_context_window(model)
    # As in `generate`, max_new_tokens comes before max_length.
    longest = window if settings.max_new_tokens else min(window, settings.max_length)
    # A max_length within the window is the caller's, and as published the reply has what the prompt leaves of it.
    reply_length = settings.max_new_tokens or (get_default_reply_length(model) if longest == window else 1)
    try:
        fitted = fit_prompt(messages, encode, longest, reply_length)
    except ModelError:
        if settings.max_new_tokens:
            raise
        try:  # a long query may have a short reply
            fitted = fit_prompt(messages, encode, longest, 1)
        except ModelError:
            if longest == window:
                raise
            raise DataError(
                f"chat: the query does not fit; max_length, {settings.max_length}, counts prompt and reply together.",
                "Raise max_length, or shorten the query.",
            ) from None
    if fitted.dropped:
        warnings.warn(
            f"chat: {count_noun(fitted.dropped, 'oldest message')} of the history left out; "
            f"prompt and reply may have {longest:,} tokens together.",
            stacklevel=2,
        )
    return fitted.ids, settings.max_new_tokens or longest - len(fitted.ids)


def _make_choice(settings: _ChatSettings, device: torch.device) -> Any:
    """How the next token is chosen: the caller's processors where `generate` has them, before temperature and top_p."""
    processors: Any = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(float(settings.repetition_penalty)))
    own = settings.logits_processor
    processors.extend(own if isinstance(own, list | tuple) else [own] if own is not None else [])
    if settings.do_sample and settings.top_k:
        processors.append(TopKLogitsWarper(int(settings.top_k)))
    temperature = float(settings.temperature) if settings.do_sample else 0.0
    seeds = [int(torch.randint(1 << 31, ()))] if temperature else [0]
    choose = make_sampler(Sampling(temperature=temperature, top_p=float(settings.top_p)), seeds, device)

    def choose_processed(ids_BS: torch.Tensor, logits_BV: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        return choose(ids_BS, processors(ids_BS, logits_BV), rows)

    return choose_processed


def _separate_tools(turn: _ChatTurn) -> tuple[Messages, list[Any] | None]:
    """The messages as the family takes them, and the tools that it lists itself."""
    first, *rest = turn.messages
    if first["role"] != "system" or not first.get("tools"):
        return turn.messages, None
    if not turn.published.tools_in_text:
        return [{"role": "system", "content": first["content"]}, *rest], first["tools"]
    text = f"{first['content']}\n{json.dumps(first['tools'], indent=4, ensure_ascii=False)}"
    return [{"role": "system", "content": text}, *rest], None


def _decode(turn: _ChatTurn) -> str:
    return decode_text(turn.tokenizer, turn.ids)


def _read_reply(turn: _ChatTurn) -> tuple[Any, list[Any]]:
    """The reply and the history with it."""
    text = _decode(turn)
    if turn.published.has_roles:
        return _read_role_reply(turn, text)
    reply = turn.family.parse_reply(text).content
    if turn.published.widens_punctuation:
        reply = widen_punctuation(reply)
    return reply, [*_pair_messages(turn.messages[:-1]), (turn.messages[-1]["content"], reply)]


def _read_role_reply(turn: _ChatTurn, text: str) -> tuple[Any, Messages]:
    """A reply begins with a line of metadata: empty, or the name of the tool that is called."""
    metadata, newline, content = text.partition("\n")
    if not newline:
        metadata, content = "", text
    if not metadata.strip():
        message = {"role": "assistant", "metadata": metadata, "content": content.strip()}
        return turn.family.parse_reply(content).content, [*turn.messages, message]
    history = [*turn.messages, {"role": "assistant", "metadata": metadata, "content": content}]
    name = metadata.strip()
    if turn.messages[0]["role"] == "system" and "tools" in turn.messages[0]:
        calls = turn.family.parse_reply(text).tool_calls
        if calls:
            return {"name": name, "parameters": calls[0].arguments}, history
    return {"name": name, "content": content}, history


def _pair_messages(messages: Messages) -> list[tuple[str, str]]:
    """Pairs of question and answer; a system message belongs to the first question."""
    pairs: list[tuple[str, str]] = []
    questions: list[str] = []
    for message in messages:
        if message["role"] == "assistant":
            pairs.append(("\n".join(questions), message["content"]))
            questions = []
        else:
            questions.append(message["content"])
    return pairs


def widen_punctuation(text: str) -> str:
    """Replace five marks beside Chinese characters by their full-width forms, as the code of ChatGLM-6B does."""
    for narrow, wide in _WIDE.items():
        text = re.sub(rf"([\u4e00-\u9fff]){re.escape(narrow)}", rf"\1{wide}", text)
        text = re.sub(rf"{re.escape(narrow)}([\u4e00-\u9fff])", rf"{wide}\1", text)
    return text
