"""Folders for other engines: adapters merged or beside their base, in transformers' layout or the published one."""
