"""Weights in fewer bits: the official packed layout (int8, int4), and NF4 or int8 through bitsandbytes."""
