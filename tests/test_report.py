"""report.html: everything in it is escaped, equals the JSON it was made from, and needs nothing else."""

from __future__ import annotations

import ast
import copy
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import report_folders as folders
import typer
from typer.testing import CliRunner

import glmtune
from glmtune.cli.report import report as report_command
from glmtune.errors import ConfigError, RunError
from glmtune.evaluation.forgetting.probe import CATEGORIES, LANGUAGES
from glmtune.html import plots
from glmtune.html.i18n import load_texts
from glmtune.html.plots import format_tick, pick_ticks, smooth_points, thin_points
from glmtune.report import write_pictures, write_report
from glmtune.report.contents import read_contents
from glmtune.report.page import render_page

KINDS = list(folders.WRITERS)
VOID = {"meta", "input", "br"}
CHINESE = re.compile(r"[\u4e00-\u9fff]")


class Page(HTMLParser):
    """What a page says: texts by language, numbers with their exact values, tags with their attributes."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.numbers: list[tuple[str, str]] = []
        self.texts: list[tuple[str | None, str]] = []
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        names = [tag for tag, _ in self._open]
        if "style" in names:
            return
        # Texts stand in texts: what hides the outer one hides the inner one.
        langs = {attrs.get("lang") for tag, attrs in self._open if tag != "html"} - {None}
        if len(langs) < 2:
            self.texts.append((langs.pop() if langs else None, data))
        if names and names[-1] == "data":
            self.numbers.append((self._open[-1][1]["value"], data))

    def read(self, lang: str) -> str:
        """The text as somebody reads it in one language."""
        return " ".join("".join(text for of, text in self.texts if of in (None, lang)).split())


def page_of(folder: Path, lang: str = "en") -> Page:
    return Page(render_page(read_contents(folder), lang))


@pytest.fixture(params=KINDS)
def folder(request, tmp_path):
    return folders.WRITERS[request.param](tmp_path / "it")


def leaves(tree: Any, path: tuple = ()):
    """The way to every value of nested dicts and lists, branches included."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield (*path, key)
        yield from leaves(value, (*path, key))


def numbers_in(tree: Any) -> set[float]:
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        return set().union(*map(numbers_in, tree))
    return {float(tree)} if isinstance(tree, (int, float)) and not isinstance(tree, bool) else set()


# --- the page as a whole ---------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else(folder):
    html = write_report(folder).read_text("utf-8")
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "image", "use"}
    attributes = [(name, value or "") for _, attrs in page.tags for name, value in attrs.items()]
    assert not [name for name, _ in attrs_of(attributes, {"src", "href", "srcset", "xlink:href", "action"})]
    assert not [name for name, _ in attributes if name.startswith("on")]
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in html


def attrs_of(attributes, names):
    return [pair for pair in attributes if pair[0] in names]


def test_every_number_is_one_of_the_files(folder):
    """The markup keeps the exact value beside each rounded one: both are checked."""
    known: set[float] = {64, 96}  # limits in config.yaml
    for path in folder.rglob("*.json*"):
        lines = path.read_text("utf-8").splitlines()
        known |= set().union(*(numbers_in(json.loads(line)) for line in lines))
    shown = page_of(folder).numbers
    assert len(shown) > 20
    for exact, text in shown:
        value = float(exact)
        assert value in known or (value == int(value) and value <= 3), f"{text}: {exact} is in no file"
        if text in ("1", "1 h", "64", "04") or text.endswith("GiB") or text.startswith("<"):
            continue
        digits = text.replace("\u2212", "-").replace(",", "").removesuffix("%").lstrip("+")
        places = len(digits.partition(".")[2])
        assert float(digits) == pytest.approx(value * (100 if "%" in text else 1), abs=0.51 * 10**-places)


def test_what_comes_from_data_is_text(folder):
    page = page_of(folder)
    assert "script" not in {tag for tag, _ in page.tags}
    assert folders.NASTY in page.read("en")
    assert folders.NASTY in page.read("zh")


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_both_languages_are_there_and_one_is_chosen(folder, lang):
    html = write_report(folder, lang).read_text("utf-8")
    page = Page(html)
    radios = {attrs["id"]: "checked" in attrs for tag, attrs in page.tags if tag == "input"}
    assert radios == {"lang-zh": lang == "zh", "lang-en": lang == "en"}
    assert dict(page.tags)["html"] == {"lang": lang}
    title = re.search("<title>(.*?)</title>", html)[1]
    assert bool(CHINESE.search(title)) == (lang == "zh")
    assert "ads" in title or "chatglm3-6b" in title
    for each, word in (("zh", "报告"), ("en", "report")):
        assert word in page.read(each)
    english = [text for of, text in page.texts if of == "en"]
    assert not [text for text in english if CHINESE.search(text.replace("粗", ""))]


def test_every_text_is_used():
    """Keys stand whole or with variable parts in Python (f-strings) and in templates (joined by ~)."""
    package = Path(glmtune.__file__).parent
    patterns = set()
    for path in [*(package / "report").rglob("*.py"), *(package / "html").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [re.escape(v.value) if isinstance(v, ast.Constant) else r"\S+" for v in node.values]
                patterns.add("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                patterns.add(re.escape(node.value))
    for path in [*(package / "report").rglob("*.j2"), *(package / "html").rglob("*.j2")]:
        for expression in re.findall(r'(?:"[^"]*"|\w+)(?:\s*~\s*(?:"[^"]*"|\w+))*', path.read_text("utf-8")):
            parts = re.findall(r'"([^"]*)"|(\w+)', expression)
            patterns.add("".join(re.escape(literal) if literal else r"\S+" for literal, _ in parts))
    patterns = {pattern for pattern in patterns if pattern.startswith("report")}
    probed = {f"report.category.{name}" for name in CATEGORIES} | {f"report.language.{name}" for name in LANGUAGES}
    keys = {key for key in load_texts("en") if key.startswith("report.")}
    assert probed <= keys
    assert sorted(key for key in keys if key not in probed and not any(re.fullmatch(p, key) for p in patterns)) == []


def test_an_unknown_language_is_refused(folder):
    with pytest.raises(ConfigError, match="'fr'"):
        write_report(folder, "fr")
    assert not (folder / "report.html").exists()


# --- what each kind says ---------------------------------------------------------------------------------------------


def test_a_run_says_what_it_was(tmp_path):
    text = page_of(folders.write_run(tmp_path / "run"), "en").read("en")
    assert "chatglm3-6b, tuned with LoRA (base in nf4) on 1,016 rows of" in text
    assert "Training loss3.315 → 0.655" in text
    assert "Evaluation loss1.400lowest 1.000" in text
    assert "1 h 04 min" in text.replace("Time1", "1")
    assert "13.8 GiB" in text
    assert "ads is better than chatglm3-6b: ROUGE-L +5.1, higher in 2 rows, lower in 1" in text
    assert "lowest at step 20 (1.0000) and rose to 1.4000" in text
    assert "3 invalid lines were skipped" in text
    assert "to the limit of 96 tokens138" in text
    assert f"glmtune train {tmp_path}/run/config.yaml --set output={tmp_path}/run-again" in text
    assert "# a comment with <angle> & brackets" in text
    assert "python 3.11.7, torch 2.13.0" in text
    assert "底座量化为 nf4" in page_of(tmp_path / "run").read("zh")


def test_an_evaluation_shows_scores_in_order_with_intervals(tmp_path):
    text = page_of(folders.write_evaluation(tmp_path / "it", 30)).read("en")
    names = ["BLEU-4character", "ROUGE-Llongest", "Truncated replies", "Length ratio", "a_score_of_tomorrow"]
    places = [text.index(name) for name in names]
    assert places == sorted(places)
    assert "25.0823.85 – 27.433" in text
    assert "The best dev.json:30" in " ".join(text.replace("The best", "The best ").split())
    assert "glmtune eval runs/ads --data 'my dev.json'" in text
    assert "(empty)" in text


@pytest.mark.parametrize(
    ("p", "sign", "word"), [(0.01, "▲", "better"), (0.06, "", "not significant"), (None, "", "unknown")]
)
def test_a_comparison_says_in_words_what_is_significant(tmp_path, p, sign, word):
    made = folders.comparison(p=p)
    (tmp_path / "comparison.json").write_text(json.dumps(made))
    text = page_of(tmp_path).read("en")
    row = text[text.index("20.0025.08") :][:60]
    assert row.startswith(f"20.0025.08{sign} {word}" if sign else f"20.0025.08{word}")


def test_fewer_faults_are_better(tmp_path):
    text = page_of(folders.write_comparison(tmp_path / "it")).read("en")
    assert "2.502.50▼ better" in text
    made = folders.comparison()
    made["pairs"][1]["difference"] |= {"mean": 2.125}
    (tmp_path / "comparison.json").write_text(json.dumps(made))
    assert "2.502.50▲ worse" in page_of(tmp_path).read("en")


def test_replies_stand_side_by_side(tmp_path):
    text = page_of(folders.write_comparison(tmp_path / "it")).read("en")
    card = text[text.index("dev.json:2") :]
    order = [card.index(each) for each in ("早先", folders.NASTY, "参考1", "ROUGE-L 11.1底座的回答", "ROUGE-L 99.5")]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("verdict", "said"), [("pass", "✓ No forgetting"), ("fail", "✗ Severe forgetting"), ("odd", "No verdict")]
)
def test_a_probe_gives_its_verdict_with_reasons_and_advice(tmp_path, verdict, said):
    (tmp_path / "forgetting.json").write_text(json.dumps(folders.forgetting(verdict)))
    text = page_of(tmp_path).read("en")
    assert said in text
    assert "ReasonsAccuracy fell by 12 points" in text
    assert "What to doMix general rows" in text
    assert "Code91.0%55.0%" in text
    assert "new kind50.0%–" in text
    assert "✗ wrong" in text


def test_models_of_one_name_are_told_apart(tmp_path):
    made = folders.comparison()
    made["models"][1]["model"]["name"] = "chatglm3-6b"
    (tmp_path / "comparison.json").write_text(json.dumps(made))
    assert "chatglm3-6b (1) → chatglm3-6b + adapter" in page_of(tmp_path).read("en")


# --- missing and broken ----------------------------------------------------------------------------------------------


def test_a_run_that_is_going_on(tmp_path):
    run = folders.write_run(tmp_path / "run", whole=False)
    before = folders.summary()
    kept = ("model", "method", "data", "device", "versions")
    folders.write_json(run / "summary.json", {"state": "running", **{key: before[key] for key in kept}})
    text = page_of(run).read("en")
    assert "Training is running or was interrupted" in text
    assert "Evaluation loss1.400" in text
    assert "Steps40" in text
    assert "Peak memory" not in text
    assert f"glmtune eval {run} --data dev.json" in text
    assert f"glmtune forget {run}" in text


def test_a_run_of_which_only_the_config_is_there(tmp_path):
    run = folders.write_run(tmp_path / "run", whole=False)
    (run / "metrics.jsonl").unlink()
    (run / "summary.json").unlink()
    text = Page(write_report(run).read_text("utf-8")).read("en")
    assert "No step has been logged yet" in text
    assert "chatglm3-6b, tuned with LoRA (base in nf4) on – rows of train.json" in text
    assert write_pictures(run) == []


def test_a_log_cut_in_the_middle_of_a_line(tmp_path):
    run = folders.write_run(tmp_path / "run", whole=False)
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 99, "lo')
    assert "99" not in {text for _, text in page_of(run).numbers}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["null", "gone", "text"])
def test_any_piece_may_be_missing(tmp_path, kind, how):
    folder = folders.WRITERS[kind](tmp_path / "it")
    for path in folder.glob("s*.json" if kind == "run" else "*.json"):  # what lies in a run has its turn by itself
        whole = json.loads(path.read_text("utf-8"))
        for way in leaves(whole):
            tree = copy.deepcopy(whole)
            node = tree
            for key in way[:-1]:
                node = node[key]
            if how == "gone":
                del node[way[-1]]
            else:
                node[way[-1]] = None if how == "null" else "what is this"
            folders.write_json(path, tree)
            try:
                page = page_of(folder)
            except Exception as error:
                raise AssertionError(f"{path.name} without {way}") from error
            assert page.texts, f"{path.name} without {way}: an empty page"
        folders.write_json(path, whole)


def test_numbers_that_json_cannot_say(tmp_path):
    made = folders.metrics("ads")
    made["loss"] = made["scores"]["rouge_l"]["high"] = float("nan")
    made["perplexity"] = float("inf")
    (tmp_path / "metrics.json").write_text(json.dumps(made))
    text = page_of(tmp_path).read("en")
    assert "nan" not in text
    assert "inf" not in text
    assert "25.0823.85 – –3" in text
    assert write_pictures(tmp_path) == [tmp_path / "scores.png"]


def test_lone_surrogates_do_not_stop_it(tmp_path):
    folder = folders.write_evaluation(tmp_path / "it")
    (folder / "predictions.jsonl").write_text(json.dumps(folders.predictions(2)[1] | {"prediction": "a\ud800b"}))
    assert "a?b" in Page(write_report(folder).read_text("utf-8")).read("en")


def test_a_very_long_reply_is_cut_and_says_so(tmp_path):
    folder = folders.write_evaluation(tmp_path / "it")
    folders.write_lines(folder / "predictions.jsonl", [folders.predictions(2)[1] | {"prediction": "长" * 9000}])
    text = page_of(folder).read("en")
    assert text.count("长") == 4000
    assert "and 5,000 more characters" in text


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(RunError, match="nothing to report on"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("content", "said"), [('{"kind": "eval",\n oops}', r"metrics.json:2"), ("[1]", "JSON object")])
def test_a_broken_file_is_named(tmp_path, content, said):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(RunError, match=said):
        write_report(tmp_path)


def test_a_broken_config_is_named(tmp_path):
    run = folders.write_run(tmp_path / "run", whole=False)
    (run / "config.yaml").write_text("a: [1\nb: 2")
    with pytest.raises(RunError, match=r"config\.yaml:2"):
        write_report(run)


# --- charts ----------------------------------------------------------------------------------------------------------


def test_curves_are_drawn_where_the_numbers_are(tmp_path):
    run = folders.write_run(tmp_path / "run")
    drawn = [attrs for tag, attrs in page_of(run).tags if tag == "path" and attrs["class"] == "curve second"]
    wide, narrow = ([tuple(map(float, p.split())) for p in attrs["d"][1:].split("L")] for attrs in drawn[:2])
    for line in (wide, narrow):  # evaluations at 10, 20, 30, 40: 1.2, 1.0, 1.2, 1.4
        (x1, y1), (x2, y2), (x3, y3), (x4, y4) = line
        assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
        assert y2 > y1 == y3 > y4
        assert (y1 - y4) == pytest.approx(y2 - y1, abs=0.2)
        assert x4 > x3


def test_thinning_keeps_peaks():
    raw = [(float(i), float(i == 777)) for i in range(5000)]
    kept = thin_points(raw)
    assert len(kept) <= 600
    assert (777.0, 1.0) in kept
    assert kept == sorted(kept)
    assert thin_points(raw[:600]) == raw[:600]


def test_smoothing_does_not_lag_and_keeps_the_ends():
    line = [(float(i), 2.0 * i) for i in range(100)]
    assert [value for _, value in smooth_points(line)] == pytest.approx([value for _, value in line])
    jagged = [(float(i), float(i % 2)) for i in range(100)]
    assert smooth_points(jagged)[0] == pytest.approx(jagged[0])
    assert smooth_points(jagged)[-1] == pytest.approx(jagged[-1])
    assert all(0.4 < value < 0.6 for _, value in smooth_points(jagged)[10:90])
    assert smooth_points(line[:20]) == []


@pytest.mark.parametrize(("low", "high"), [(0.0, 3.2), (1e-5, 1e-4), (0.0, 212_345.0), (-1.0, 1.0), (11.9, 12.1)])
def test_ticks_are_round_and_inside(low, high):
    found = pick_ticks(low, high, 4)
    assert 2 <= len(found) <= 6
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    assert all(len(format_tick(value)) <= 6 for value in found)


def test_one_point_is_a_chart_too(tmp_path):
    run = folders.write_run(tmp_path / "run", whole=False)
    folders.write_lines(run / "metrics.jsonl", folders.log(40)[:1])
    page = page_of(run)
    assert [attrs for tag, attrs in page.tags if tag == "circle" and attrs["class"] == "dot first"]
    assert "nan" not in render_page(read_contents(run), "en").lower()


def test_pictures_lie_beside_the_page(folder):
    write_report(folder)
    expected = {
        "run": {"curves.png", "scores.png", "forgetting.png"},
        "eval": {"scores.png"},
        "comparison": {"scores.png"},
        "forgetting": {"forgetting.png"},
    }[read_contents(folder).kind]
    assert {path.name for path in folder.glob("*.png")} == expected
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))


def test_labels_fit_into_the_picture_of_the_curves(tmp_path, monkeypatch):
    figures = []
    save = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure) or save(figure, path))
    write_pictures(folders.write_run(tmp_path / "run"))
    figure = figures[0]
    labels = [label for axes in figure.axes for label in (axes.xaxis.label, axes.yaxis.label)]
    assert len(labels) == 8
    for label in labels:
        box = label.get_window_extent()
        assert figure.bbox.contains(box.x0, box.y0), label
        assert figure.bbox.contains(box.x1, box.y1), label


def test_the_command_writes_it(folder):
    app = typer.Typer()
    app.command()(report_command)
    done = CliRunner().invoke(app, [str(folder), "--lang", "zh"])
    assert done.exit_code == 0
    assert str(folder / "report.html") in done.output
    assert '<html lang="zh">' in (folder / "report.html").read_text("utf-8")


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def show(browser, tmp_path):
    """`show(kind, width)`: the page in a browser of that width; at the end, nothing was complained of or fetched."""
    complaints, fetched, pages = [], [], []

    def open_page(kind: str, width: int):
        tab = browser.new_page(viewport={"width": width, "height": 900})
        pages.append(tab)
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: fetched.append(request.url))
        folder = tmp_path / kind
        if not folder.exists():
            folders.WRITERS[kind](folder)
        tab.goto(write_report(folder).as_uri())
        return tab

    yield open_page
    for tab in pages:
        tab.close()
    assert complaints == []
    assert len(fetched) == len(pages)


_OVERHANG = """() => [...document.querySelectorAll('body *')].filter(e => !e.closest('.choice') &&
  e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("kind", KINDS)
def test_no_page_is_wider_than_its_screen(show, kind):
    for width in (390, 1280):
        tab = show(kind, width)
        for lang in ("zh", "en"):
            tab.click(f"label[for=lang-{lang}]")
            assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_the_switch_changes_the_language(show):
    tab = show("run", 390)
    assert tab.inner_text("h2 >> nth=0") == "Training curves"
    tab.click("label[for=lang-zh]")
    assert tab.inner_text("h2 >> nth=0") == "训练曲线"
    assert "Training curves" not in tab.inner_text("body")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_cut_off_on_paper(show, kind):
    tab = show(kind, 695)  # A4 without its margins
    tab.emulate_media(media="print")
    for lang in ("zh", "en"):
        tab.evaluate(f"document.getElementById('lang-{lang}').checked = true")
        assert tab.evaluate(_OVERHANG) == []
