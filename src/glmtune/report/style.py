"""The page's looks. Colours are told apart by everybody (Okabe and Ito's palette) and never say anything alone."""

STYLE = """
:root { color-scheme: light dark; --page: #f4f5f7; --card: #fff; --ink: #1a1f26; --faint: #5a6572; --line: #e2e6eb;
  --soft: #f0f2f5; --a: #0a66ad; --a-soft: #9cc6e6; --b: #c24e00; --b-soft: #f2c29f; --good: #00735a;
  --good-back: #e2f4ee; --warn: #8a5a00; --warn-back: #fdf1d8; --bad: #b3261e; --bad-back: #fce8e6; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #0e1216; --card: #171c22; --ink: #e8ecf1;
  --faint: #9aa6b3; --line: #2b333c; --soft: #1f262d; --a: #5fb2f0; --a-soft: #2f5f86; --b: #ff9a57;
  --b-soft: #84502c; --good: #4fd1ac; --good-back: #12332a; --warn: #f0bd5b; --warn-back: #36290f; --bad: #ff9389;
  --bad-back: #3d1a17; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); -webkit-print-color-adjust: exact;
  print-color-adjust: exact; font: 15px/1.6 system-ui, -apple-system, "Segoe UI", "PingFang SC", "Microsoft YaHei",
  "Noto Sans CJK SC", "WenQuanYi Micro Hei", sans-serif; }
#lang-zh:checked ~ * [lang=en], #lang-en:checked ~ * [lang=zh] { display: none; }
.choice { position: absolute; opacity: 0; pointer-events: none; }
.bar, main, footer { max-width: 1080px; margin: 0 auto; padding: 0 20px; }
.bar { display: flex; align-items: center; justify-content: space-between; gap: 12px; padding-top: 18px; }
.brand { font-weight: 700; letter-spacing: -.01em; line-height: 1.3; }
.brand span { color: var(--faint); font-weight: 400; margin-left: .5em; }
.switch { display: flex; flex: none; white-space: nowrap; border-radius: 99px; padding: 2px;
  border: 1px solid var(--line); background: var(--card); }
.switch label { padding: 3px 14px; border-radius: 99px; cursor: pointer; font-size: 13px; color: var(--faint); }
#lang-zh:checked ~ .bar label[for=lang-zh], #lang-en:checked ~ .bar label[for=lang-en] { background: var(--ink);
  color: var(--card); }
#lang-zh:focus-visible ~ .bar .switch, #lang-en:focus-visible ~ .bar .switch { outline: 2px solid var(--a);
  outline-offset: 2px; }
h1 { font-size: clamp(23px, 3.4vw, 34px); line-height: 1.28; letter-spacing: -.015em; margin: 34px 0 10px;
  max-width: 27em; overflow-wrap: anywhere; text-wrap: balance; }
.lede { font-size: 17px; color: var(--faint); margin: 0; max-width: 44em; overflow-wrap: anywhere; }
.lede strong { color: var(--ink); font-weight: 600; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 22px 24px 24px;
  margin: 18px 0; }
h2 { font-size: 19px; margin: 0 0 4px; letter-spacing: -.01em; }
h3 { font-size: 15px; margin: 24px 0 8px; overflow-wrap: anywhere; }
p { margin: 6px 0; }
.name { display: inline-block; max-width: 100%; overflow-wrap: anywhere; }
.note, small { color: var(--faint); font-size: 13px; }
.note { max-width: 62em; }
a { color: var(--a); }
code, pre { font: 13px/1.55 ui-monospace, "SF Mono", Menlo, Consolas, "WenQuanYi Micro Hei Mono", monospace; }
code { overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(var(--columns), 1fr); gap: 12px; margin: 22px 0 18px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 14px 16px; min-width: 0; }
.tile dt { font-size: 13px; color: var(--faint); }
.tile dd { margin: 2px 0 0; font-size: 24px; line-height: 1.25; font-weight: 650; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.tile dd small { display: block; font-size: 13px; font-weight: 400; letter-spacing: 0; margin-top: 2px; }
.tile .was { color: var(--faint); font-weight: 400; font-size: 18px; }
.tile.good dd { color: var(--good); } .tile.warn dd { color: var(--warn); } .tile.bad dd { color: var(--bad); }
.tile dd small { color: var(--faint); }
.badge { display: inline-block; border-radius: 99px; padding: 2px 12px; font-size: 14px; font-weight: 600;
  margin: 2px 0 4px -4px; }
.good .badge, .badge.good { background: var(--good-back); color: var(--good); }
.warn .badge, .badge.warn { background: var(--warn-back); color: var(--warn); }
.bad .badge, .badge.bad { background: var(--bad-back); color: var(--bad); }
.callout { border-left: 4px solid var(--line); background: var(--soft); border-radius: 4px 10px 10px 4px;
  padding: 10px 16px; margin: 14px 0; overflow-wrap: anywhere; }
.callout.good { border-color: var(--good); } .callout.warn { border-color: var(--warn); }
.callout.bad { border-color: var(--bad); }
.callout h3 { margin: 4px 0; } .callout ul { margin: 4px 0; padding-left: 1.3em; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 290px), 1fr)); gap: 22px 26px;
  margin-top: 22px; }
figure { margin: 14px 0 0; min-width: 0; } .charts figure { margin: 0; }
figcaption { display: flex; flex-wrap: wrap; gap: 2px 16px; align-items: baseline; font-weight: 600; font-size: 14px; }
figcaption small { font-weight: 400; }
.legend { display: inline-flex; align-items: center; gap: 6px; font-weight: 400; font-size: 13px; color: var(--faint); }
.legend svg { width: 26px; height: 10px; flex: none; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-size: 12px; fill: var(--faint); font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); } .axis { stroke: var(--faint); }
.curve { fill: none; stroke-linejoin: round; stroke-linecap: round; stroke-width: 2; }
.raw { stroke: var(--a-soft); stroke-width: 1; } .first { stroke: var(--a); }
.second { stroke: var(--b); stroke-dasharray: 7 4; } .third { stroke: var(--good); stroke-dasharray: 2 4; }
.fourth { stroke: var(--faint); stroke-dasharray: 10 3 2 3; }
.dot.first { fill: var(--a); } .dot.second { fill: var(--card); stroke: var(--b); stroke-width: 2;
  stroke-dasharray: none; }
.dot.third { fill: var(--good); } .dot.fourth { fill: var(--faint); } .dot.raw { fill: var(--a-soft); }
svg .mark { font-weight: 600; fill: var(--ink); }
.narrow { display: none; }
.scroll { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: right; padding: 7px 10px; border-bottom: 1px solid var(--line); vertical-align: top;
  font-variant-numeric: tabular-nums; font-weight: 400; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } td:last-child, th:last-child { padding-right: 0; }
thead th { color: var(--faint); font-size: 13px; vertical-align: bottom; } tbody tr:last-child > * { border-bottom: 0; }
tbody th { min-width: 9.5em; } .facts td, .left td { overflow-wrap: anywhere; }
.facts th { width: 32%; color: var(--faint); }
.score-name small { display: block; line-height: 1.4; max-width: 34em; } td strong { font-weight: 650; }
td { white-space: nowrap; } .facts td, .left td { white-space: normal; }
.facts td, .left td, .left th { text-align: left; }
td.zero, .zero { color: var(--faint); }
.whisker { width: 170px; height: 18px; margin-left: auto; }
.whisker .range { stroke: var(--a); stroke-width: 2; } .whisker .track { fill: var(--soft); }
.whisker .mean { fill: var(--a); }
.better { color: var(--good); } .worse { color: var(--bad); }
.unclear { color: var(--faint); display: inline-block; white-space: normal; max-width: 7em; }
.split { display: flex; height: 22px; border-radius: 5px; overflow: hidden; font-size: 12px; line-height: 22px;
  min-width: 150px; text-align: center; }
.split span.win { background: var(--a); color: var(--card); } .split span.tie { background: var(--line); }
.split span.loss { background: var(--b); color: var(--card); }
.split > span { overflow: hidden; white-space: nowrap; }
.keys { display: flex; flex-wrap: wrap; gap: 0 16px; color: var(--faint); font-size: 13px; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; }
.key.win { background: var(--a); } .key.tie { background: var(--line); }
.key.loss { background: var(--b); } .key.base { background: var(--b-soft); }
.key.tuned { background: var(--a); }
.pair { display: grid; grid-template-columns: 8.5em 1fr; gap: 2px 14px; align-items: center; padding: 9px 0;
  border-bottom: 1px solid var(--line); font-size: 14px; } .pair:last-child { border: 0; }
.pair .bars { display: grid; gap: 3px; } .pair .bars > div { display: flex; align-items: center; gap: 8px; }
.pair .track { flex: 1; background: var(--soft); border-radius: 4px; height: 13px; overflow: hidden; }
.pair .fill { height: 100%; border-radius: 4px; } .fill.base { background: var(--b-soft); }
.fill.tuned { background: var(--a); } .pair data, .pair .none { width: 4.6em; text-align: right; font-size: 13px;
  font-variant-numeric: tabular-nums; }
.reply-card { border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px; margin: 14px 0; }
.reply-card header { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 2px 14px; font-size: 13px;
  color: var(--faint); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 2px 0 0; }
.ask { font-weight: 600; margin: 6px 0 10px; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 240px), 1fr)); gap: 10px; }
.side > div { background: var(--soft); border-radius: 9px; padding: 10px 13px; min-width: 0; }
.side .who { display: flex; justify-content: space-between; gap: 10px; font-size: 13px; color: var(--faint);
  overflow-wrap: anywhere; }
.side .tuned { background: color-mix(in srgb, var(--a) 9%, var(--card)); }
.side .tuned .who { color: var(--a); font-weight: 600; }
details { margin: 12px 0; } summary { cursor: pointer; color: var(--a); font-size: 14px; padding: 4px 0; }
pre { background: var(--soft); border-radius: 9px; padding: 12px 14px; margin: 8px 0; white-space: pre-wrap;
  overflow-wrap: anywhere; }
footer { color: var(--faint); font-size: 13px; padding-top: 4px; padding-bottom: 36px; }
:focus-visible { outline: 2px solid var(--a); outline-offset: 2px; border-radius: 4px; }
@media (max-width: 640px) { .bar, main, footer { padding-left: 14px; padding-right: 14px; }
  section { padding: 18px 15px; } .tiles { grid-template-columns: 1fr 1fr; gap: 9px; } .tile { padding: 12px 13px; }
  .tile dd { font-size: 20px; } .tile .was { font-size: 15px; } h1 { margin-top: 24px; }
  .pair { grid-template-columns: 1fr; } .lede { font-size: 16px; } .facts th { min-width: 8em; }
  .compare tbody small { display: none; } .compare td small { display: inline; } .compare th, .compare td {
  padding-left: 6px; padding-right: 6px; } .compare tr > :first-child { padding-left: 0; min-width: 6.2em; }
  .wide { display: none; } .narrow { display: block; } }
@page { size: A4; margin: 14mm 13mm; }
@media print { body { background: #fff; font-size: 12.5px; } .switch { display: none; } main, .bar, footer {
  max-width: none; padding: 0; } section { border: 0; border-top: 1px solid var(--line); border-radius: 0;
  padding: 14px 0; margin: 8px 0; } .tile { padding: 8px 10px; } .tile dd { font-size: 18px; } .tile .was {
  font-size: 14px; } .tiles { grid-template-columns: repeat(3, 1fr); } h1 { font-size: 24px; margin-top: 14px; }
  h2, h3 { break-after: avoid; } figure, .tile, .pair, tr, .reply-card, .callout { break-inside: avoid; }
  .scroll { overflow: visible; } table { font-size: 12px; } th, td { padding: 5px 6px; } tbody th { min-width: 0; }
  .whisker { width: 110px; } summary { color: var(--faint); } .split { min-width: 96px; }
  .score-name small { font-size: 11px; line-height: 1.3; } .charts { grid-template-columns: 1fr 1fr 1fr; gap: 10px; }
  .side { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); } svg text { font-size: 13px; } }
"""
