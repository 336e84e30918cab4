"""Tokens per second and memory of a model, measured in processes of their own."""
