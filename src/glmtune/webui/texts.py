"""All words of the page, in both languages, merged from a table per tab."""

from __future__ import annotations

from typing import Any

from glmtune.webui.texts_chat import TEXTS as CHAT
from glmtune.webui.texts_common import TEXTS as COMMON
from glmtune.webui.texts_config import TEXTS as CONFIG
from glmtune.webui.texts_data import TEXTS as DATA
from glmtune.webui.texts_evaluate import TEXTS as EVALUATE
from glmtune.webui.texts_export import TEXTS as EXPORT
from glmtune.webui.texts_model import TEXTS as MODEL
from glmtune.webui.texts_plan import TEXTS as PLAN
from glmtune.webui.texts_runs import TEXTS as RUNS
from glmtune.webui.texts_train import TEXTS as TRAIN

LANGUAGES = {"zh": "中文", "en": "English"}
TABLES = (COMMON, CONFIG, MODEL, DATA, TRAIN, PLAN, RUNS, CHAT, EVALUATE, EXPORT)
TEXTS: dict[str, dict[str, str]] = {key: said for table in TABLES for key, said in table.items()}


def text(key: str, lang: str, **values: Any) -> str:
    """The text of `key` in a language, with its `{names}` filled in."""
    said = TEXTS[key][lang]
    return said.format(**values) if values else said
