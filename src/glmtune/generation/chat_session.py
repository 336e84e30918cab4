"""A conversation in the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from glmtune.errors import GlmtuneError
from glmtune.families import Family, Reply
from glmtune.generation.engine import NonFiniteLogitsError
from glmtune.generation.reply import Sampling, generate_reply
from glmtune.utils.console import get_console, print_message, print_warning

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HELP = "/clear forgets the conversation, /system TEXT sets a system message, /exit leaves."


class ChatSession:
    """The messages of a conversation, and the model that answers them."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        family: Family,
        sampling: Sampling,
        system: str = "",
        prefix: str = "",
    ):
        self._model = model
        self._tokenizer = tokenizer
        self._family = family
        self._sampling = sampling
        self._prefix = prefix
        self.system = system
        self.messages: list[dict[str, Any]] = []

    def ask(
        self,
        text: str,
        on_text: Callable[[str], None] | None = None,
        on_drop: Callable[[int], None] | None = None,
    ) -> Reply:
        """Get the model's answer to `text`, and add both to the conversation; nothing is added on failure.

        Args:
            text: of the user.
            on_text: called with each new piece of the answer.
            on_drop: called with the number of earlier messages that the context window has no room for; they leave the
                conversation.
        """
        dropped = 0

        def drop(count: int) -> None:
            nonlocal dropped
            dropped = count
            if on_drop:
                on_drop(count)

        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*self.messages, {"role": "user", "content": text}]
        reply = generate_reply(
            self._model,
            self._tokenizer,
            self._family,
            [*system, *messages],
            sampling=self._sampling,
            on_text=on_text,
            prefix=self._prefix,
            on_drop=drop,
        )
        self.messages = [*messages[dropped:], {"role": "assistant", "content": reply.content}]
        return reply

    def clear(self) -> None:
        """Clear the conversation; the system message stays."""
        self.messages = []


def run_chat(session: ChatSession) -> None:
    """Read lines and answer them until /exit or the end of input."""
    console = get_console()
    console.print(HELP, style="dim", highlight=False)
    while True:
        try:
            line = console.input("[bold green]> [/]").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line == "/exit":
            return
        if line.startswith("/"):
            _run_command(line, session)
        elif line:
            _print_reply(line, session)


def format_calls(reply: Reply) -> str:
    """The tool calls of a reply, a line each."""
    return "\n".join(f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)})" for call in reply.tool_calls)


def _run_command(line: str, session: ChatSession) -> None:
    command, _, rest = line.partition(" ")
    if command == "/clear":
        session.clear()
        print_message("The conversation is cleared.", "dim")
    elif command == "/system":
        session.system = rest.strip()
        session.clear()
        message = "System message set" if session.system else "System message removed"
        print_message(f"{message}; a new conversation starts.", "dim")
    else:
        print_message(f"There is no command {command}. {HELP}", "dim")


def _print_drop(count: int) -> None:
    print_warning(
        f"The conversation is longer than the model's context window; its oldest {count} messages are left out."
    )


def _print_reply(line: str, session: ChatSession) -> None:
    console = get_console()

    def write(text: str) -> None:
        console.print(text, end="", markup=False, highlight=False, soft_wrap=True)

    try:
        reply = session.ask(line, on_text=write, on_drop=_print_drop)
    except NonFiniteLogitsError:
        raise  # it would be the same with every other message
    except KeyboardInterrupt:
        console.print("\n(interrupted)", style="dim")
        return
    except GlmtuneError as error:
        console.print(str(error), style="red", markup=False)
        return
    console.print()
    if reply.tool_calls:
        console.print(format_calls(reply), style="cyan", markup=False)
