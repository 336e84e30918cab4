"""Command lines, shell scripts and config files of the scripts this project grew from, read as runs of our own."""

from glmtune.migrate.draft import Translation
from glmtune.migrate.entry import read_config, read_flags, translate
from glmtune.migrate.training import modern_training
from glmtune.migrate.write import to_yaml

__all__ = ["Translation", "modern_training", "read_config", "read_flags", "to_yaml", "translate"]
