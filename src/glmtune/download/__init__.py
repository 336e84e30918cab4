"""Checkpoints from a model hub: the list of a repository's files, the choice of those needed, resumable transfers."""
