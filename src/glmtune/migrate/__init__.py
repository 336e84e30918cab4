"""Command lines, shell scripts and config files of other ChatGLM projects, translated to runs of glmtune."""

from glmtune.migrate.argument_names import update_training_keys
from glmtune.migrate.entry import plan_commands, require_translation, translate_command
from glmtune.migrate.replacement import ReplacementCommand
from glmtune.migrate.translation import Translation, dump_translation

__all__ = [
    "ReplacementCommand",
    "Translation",
    "dump_translation",
    "plan_commands",
    "require_translation",
    "translate_command",
    "update_training_keys",
]
