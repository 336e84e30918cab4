"""The page's whole flow in English, in dark colours, the training set up without a mouse: `make page`."""

from test_webui_browser import fill_by_keyboard, follow_flow, site

__all__ = ["site"]  # a fixture


def test_from_rows_to_an_exported_model_in_english(site):
    follow_flow(site("en"), fill_by_keyboard, "dark")
