"""Replies: one at a time, streamed."""
