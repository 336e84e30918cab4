"""Components whose words change with the language."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import gradio as gr

from glmtune.webui.texts import text

Component = TypeVar("Component")
Wording = str | Mapping[Any, str]


class Words:
    """Collects components and the keys of their words, and says what changes when the language does."""

    def __init__(self, lang: str):
        self._lang = lang
        self._keys: list[dict[str, Wording]] = []
        self.components: list[Any] = []

    def add(self, component: Component, **keys: Wording) -> Component:
        """Put words on a component, and remember them.

        Args:
            component: a Gradio component, tab or accordion.
            keys: property to text key: `label`, `placeholder`, `info`, `value`; for `choices` a mapping of value to
                text key.

        Returns:
            The component itself.
        """
        for name, key in keys.items():
            setattr(component, name, _said(key, self._lang))
        self.components.append(component)
        self._keys.append(keys)
        return component

    def switch(self, lang: str) -> list[Any]:
        """An update for each of `components`."""
        return [gr.update(**{name: _said(key, lang) for name, key in keys.items()}) for keys in self._keys]


def _said(key: Wording, lang: str) -> Any:
    if isinstance(key, str):
        return text(key, lang)
    return [(text(wording, lang), value) for value, wording in key.items()]
