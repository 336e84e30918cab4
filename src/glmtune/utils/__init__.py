"""Helpers without a subject of their own: the console, and files that are written whole."""
