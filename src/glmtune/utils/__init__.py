"""Helpers that all packages use: the console, and files."""
