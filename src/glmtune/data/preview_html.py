"""A preview as one page that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from html import escape

from glmtune.data.preview import Preview, PreviewRow, Token, spelt

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --page: #ffffff; --ink: #1f2328; --faint: #59636e; --line: #d1d9e0;
  --learnt: #0b5d1e; --learnt-back: #d9f5df; --special: #7b1fa2; --special-back: #f4e6fa; --marker: #8a5300; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --page: #0d1117; --ink: #e6edf3; --faint: #9198a1; --line: #3d444d;
    --learnt: #7ee787; --learnt-back: #12331b; --special: #e2a8ff; --special-back: #33203f; --marker: #f0b75e; }}
}}
body {{ margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 1rem/1.7 system-ui, sans-serif; }}
h1 {{ font-size: 1.1rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1rem; margin: 1.5rem 0 .5rem; }}
p {{ margin: .25rem 0; }}
.row {{ border: 1px solid var(--line); border-radius: .5rem; padding: .75rem; white-space: pre-wrap;
  overflow-wrap: anywhere; color: var(--faint); }}
.learnt {{ color: var(--learnt); background: var(--learnt-back); }}
.special {{ color: var(--special); background: var(--special-back); border-radius: .25rem; padding: 0 .15rem; }}
.special.learnt {{ color: var(--learnt); background: var(--learnt-back); outline: 1px solid var(--learnt); }}
.marker {{ color: var(--marker); font-weight: 600; }}
.legend span {{ margin-right: 1rem; }}
sub {{ font-size: .65em; color: var(--faint); user-select: none; margin-right: .1em; }}
</style>
</head>
<body>
<h1>{title}</h1>
{facts}
<p class="legend"><span class="learnt">learnt</span><span>only read</span><span class="special">special token</span>
<span class="special learnt">learnt special token</span>{marker}</p>
{rows}
</body>
</html>
"""


_MARKER = '<span class="marker">→&lt;/s&gt;</span>learnt as what should follow, though the text goes on'


def render_html(shown: Preview, ids: bool = False) -> str:
    """The page. Ids show when a token is pointed at; with `ids` they also stand behind each token."""
    title, *facts = shown.heading()
    many = len(shown.rows) > 1
    rows = []
    for number, row in enumerate(shown.rows, start=1):
        if many:
            rows.append(
                f"<h2>row {number} of {len(shown.rows)}: {len(row.tokens):,} tokens, {row.targets:,} learnt</h2>"
            )
        rows.append(f'<div class="row">{_row(row, ids)}</div>')
    marked = any(token.label_only for row in shown.rows for token in row.tokens)
    return _PAGE.format(
        title=escape(title),
        facts="\n".join(f"<p>{escape(fact)}</p>" for fact in facts),
        marker=_MARKER if marked else "",
        rows="\n".join(rows),
    )


def _row(row: PreviewRow, ids: bool) -> str:
    parts: list[str] = []
    waiting: list[int] = []
    for token in row.tokens:
        if token.label_only is not None:
            parts.append(f'<span class="marker">→{escape(token.label_only)}</span>')
        waiting.append(token.id)
        if token.text is not None:
            parts.append(_span(token, waiting, ids))
            waiting = []
    return "".join(parts)


def _span(token: Token, token_ids: list[int], ids: bool) -> str:
    classes = " ".join(name for name, on in (("special", token.special), ("learnt", token.learnt)) if on)
    named = "+".join(map(str, token_ids))
    attribute = f' class="{classes}"' if classes else ""
    below = f"<sub>{named}</sub>" if ids else ""
    # The number goes in front of a line break, not to the start of the next line.
    text, newline, rest = escape(spelt(token)).partition("\n")
    return f'<span{attribute} title="{named}">{text}{below}{newline}{rest}</span>'
