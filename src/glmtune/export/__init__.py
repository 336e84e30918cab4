"""Folders for other engines: merged models or adapters, in transformers' layout or the published one."""
