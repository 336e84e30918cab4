"""A preview as one HTML page without scripts, fonts or network."""

from __future__ import annotations

from html import escape

from glmtune.data.preview import Preview, PreviewRow, escape_token

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --page: #ffffff; --ink: #1f2328; --faint: #59636e; --line: #d1d9e0;
  --target: #0b5d1e; --target-back: #d9f5df; --special: #7b1fa2; --special-back: #f4e6fa; --marker: #8a5300; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --page: #0d1117; --ink: #e6edf3; --faint: #9198a1; --line: #3d444d;
    --target: #7ee787; --target-back: #12331b; --special: #e2a8ff; --special-back: #33203f; --marker: #f0b75e; }}
}}
body {{ margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 1rem/1.7 system-ui, sans-serif; }}
h1 {{ font-size: 1.1rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1rem; margin: 1.5rem 0 .5rem; }}
p {{ margin: .25rem 0; }}
.row {{ border: 1px solid var(--line); border-radius: .5rem; padding: .75rem; white-space: pre-wrap;
  overflow-wrap: anywhere; color: var(--faint); }}
.target {{ color: var(--target); background: var(--target-back); }}
.special {{ color: var(--special); background: var(--special-back); border-radius: .25rem; padding: 0 .15rem; }}
.special.target {{ color: var(--target); background: var(--target-back); outline: 1px solid var(--target); }}
.marker {{ color: var(--marker); font-weight: 600; }}
.legend span {{ margin-right: 1rem; }}
sub {{ font-size: .65em; color: var(--faint); user-select: none; margin-right: .1em; }}
</style>
</head>
<body>
<h1>{title}</h1>
{facts}
<p class="legend"><span class="target">trained on</span><span>input only</span>
<span class="special">special token</span><span class="special target">special token trained on</span>{marker}</p>
{rows}
</body>
</html>
"""


_MARKER = '<span class="marker">→&lt;/s&gt;</span>is the label here; the input has another token'


def render_html(preview: Preview, ids: bool = False) -> str:
    """The page. Ids of tokens are shown on hover; with `ids` also after each token."""
    title, *facts = preview.make_heading()
    rows = []
    for number, row in enumerate(preview.rows, start=1):
        if len(preview.rows) > 1:
            sizes = f"{len(row.tokens):,} tokens, {row.targets:,} trained on"
            rows.append(f"<h2>row {number} of {len(preview.rows)}: {sizes}</h2>")
        rows.append(f'<div class="row">{_render_row(row, ids)}</div>')
    return _PAGE.format(
        title=escape(title),
        facts="\n".join(f"<p>{escape(fact)}</p>" for fact in facts),
        marker=_MARKER if preview.has_markers else "",
        rows="\n".join(rows),
    )


def _render_row(row: PreviewRow, ids: bool) -> str:
    parts: list[str] = []
    token_ids: list[int] = []
    for token in row.tokens:
        if token.label_only is not None:
            parts.append(f'<span class="marker">→{escape(token.label_only)}</span>')
        token_ids.append(token.id)
        if token.text is None:
            continue
        classes = " ".join(name for name, on in (("special", token.is_special), ("target", token.is_target)) if on)
        attribute = f' class="{classes}"' if classes else ""
        title = "+".join(map(str, token_ids))
        subscript = f"<sub>{title}</sub>" if ids else ""
        # The ids go before a line break, not to the start of the next line.
        text, newline, rest = escape(escape_token(token)).partition("\n")
        parts.append(f'<span{attribute} title="{title}">{text}{subscript}{newline}{rest}</span>')
        token_ids = []
    return "".join(parts)
