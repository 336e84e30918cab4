"""Prompts in the template language of Ollama's Modelfile (Go's text/template), with the token names of a GGUF file.

They give the text of the chat templates (`templates.py`) for conversations that end with a question.
"""

from __future__ import annotations

# `len` of a string that grows by one letter with each question is the number of the round: the language cannot add.
_ROUNDS = """\
[gMASK]<sop>{{ $round := "" }}{{ $system := "" }}{{ range .Messages }}\
{{ if eq .Role "system" }}{{ $system = printf "%s%s\\n" $system .Content }}\
{{ else if eq .Role "user" }}{{ $round = printf "%s#" $round }}[Round {{ len $round }}]

问：{{ $system }}{{ .Content }}

答：{{ $system = "" }}\
{{ else if eq .Role "assistant" }}{{ .Content }}

{{ end }}{{ end }}"""


def _make_roles(prefix: str) -> str:
    """Every message after the token of its role; `prefix` is what comes before a content that is not empty."""
    role = '{{ if eq .Role "tool" }}observation{{ else }}{{ .Role }}{{ end }}'
    content = f"{{{{ if .Content }}}}{prefix}{{{{ .Content }}}}{{{{ end }}}}"
    return f"[gMASK]<sop>{{{{ range .Messages }}}}<|{role}|>\n{content}{{{{ end }}}}<|assistant|>"


OLLAMA_TEMPLATES = {"chatglm2": _ROUNDS, "chatglm3": _make_roles(" "), "glm4": _make_roles("")}
"""By the name of the generation."""
