"""How the page looks: system fonts, calm colours, a visible focus; nothing is fetched from elsewhere."""

from __future__ import annotations

import gradio as gr

_FONTS = ("system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "sans-serif")
_MONO = ("ui-monospace", "Consolas", "Noto Sans Mono CJK SC", "WenQuanYi Micro Hei Mono", "monospace")


def theme() -> gr.themes.Base:
    """Gradio's plain theme in a quiet blue."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        secondary_hue=gr.themes.colors.slate,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=_FONTS,
        font_mono=_MONO,
    ).set(
        body_background_fill="#f6f8fb",
        body_background_fill_dark="#0f141b",
        block_shadow="none",
        block_label_text_weight="600",
        button_primary_background_fill="#1d5fd1",
        button_primary_background_fill_hover="#174fb0",
        button_primary_text_color="white",
    )


CSS = """
.gradio-container > .main { width: 100% !important; max-width: 1180px !important; margin: 0 auto !important;
  padding: .75rem 1rem 2rem !important; }
#head { align-items: center; }
#title h1 { font-size: 1.35rem; line-height: 1.3; margin: 0; font-weight: 650; }
#title p { margin: .15rem 0 0; color: var(--body-text-color-subdued); }
#language { padding: .4rem .75rem; }
#language .wrap { flex-wrap: nowrap; }
.ends { align-items: flex-end; }
.knobs .block > label { display: flex; flex-direction: column; height: 100%; }
.knobs .block > label > :last-child { margin-top: auto; }
:is(button, input, textarea, select, a, summary, [tabindex]):focus-visible {
  outline: 3px solid #1d5fd1 !important; outline-offset: 2px; }
.facts { width: 100%; border-collapse: collapse; font-size: .95rem; }
.facts, .facts tr { border: 0 !important; }
.facts tr { border-bottom: 1px solid var(--border-color-primary) !important; }
.facts :is(th, td) { border: 0 !important; padding: .45rem .75rem .45rem 0 !important; vertical-align: top; }
.facts th { text-align: left; font-weight: 500; color: var(--body-text-color-subdued); white-space: nowrap;
  width: 9rem; }
.facts td { overflow-wrap: anywhere; }
.note { color: var(--body-text-color-subdued); font-size: .92rem; margin: .25rem 0; overflow-wrap: anywhere; }
.problem { color: #b42318; font-size: .95rem; margin: .25rem 0; overflow-wrap: anywhere; }
.dark .problem { color: #ff9b8f; }
.bar { height: .7rem; border-radius: .35rem; background: var(--border-color-primary); overflow: hidden; }
.bar > div { height: 100%; background: #1d5fd1; border-radius: .35rem; transition: width .4s; }
.figures { display: flex; flex-wrap: wrap; gap: .4rem 1.6rem; margin: .6rem 0 0; padding: 0; }
.figures div { min-width: 5.5rem; }
.figures dt { font-size: .82rem; color: var(--body-text-color-subdued); }
.figures dd { margin: 0; font-variant-numeric: tabular-nums; font-weight: 600; overflow-wrap: anywhere; }
.state { display: inline-block; padding: .05rem .55rem; border-radius: 1rem; font-size: .85rem; font-weight: 600;
  background: #e3e8ef; color: #344054; }
.state.running { background: #dbe8fd; color: #174fb0; }
.state.finished { background: #d8f3e0; color: #116932; }
.state.failed { background: #fde2df; color: #b42318; }
.chart { width: 100%; height: auto; display: block; }
.chart text { fill: var(--body-text-color-subdued); font-size: 12px; }
.chart .grid { stroke: var(--border-color-primary); stroke-width: 1; }
.chart .rows { fill: #1d5fd1; }
.chart .limit { stroke: #b42318; stroke-dasharray: 5 4; }
.findings { margin: .35rem 0 0; padding-left: 1.1rem; }
.findings li { margin: .3rem 0; overflow-wrap: anywhere; }
details.finding { margin: .4rem 0; }
details.finding summary { cursor: pointer; }
details.finding summary.error strong { color: #b42318; }
.dark details.finding summary.error strong { color: #ff9b8f; }
.findings code { font-size: .88em; }
.rowview { width: 100%; height: 26rem; border: 1px solid var(--border-color-primary); border-radius: .5rem;
  background: var(--background-fill-primary); }
.log textarea { font-family: var(--font-mono); font-size: .82rem; line-height: 1.45; }
@media (max-width: 640px) {
  .gradio-container { padding: 0 !important; }
  .gradio-container > .main { padding: .5rem .5rem 2rem !important; }
  :is(.chart, #train-curves svg[role="img"]) text { font-size: 26px; }
  .tab-container > button { padding: 0 .35rem !important; font-size: .82rem !important; }
  .facts th { white-space: normal; width: 6rem; }
}
"""
