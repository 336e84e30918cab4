"""The Python interface of the published repositories on our models: Auto classes, `chat`, `stream_chat`, `quantize`."""
