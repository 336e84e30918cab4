"""Command lines, shell scripts and config files of other ChatGLM projects, translated to runs of glmtune."""

from glmtune.migrate.argument_names import update_training_keys
from glmtune.migrate.entry import require_translation, translate_command
from glmtune.migrate.translation import Translation, dump_translation

__all__ = [
    "Translation",
    "dump_translation",
    "require_translation",
    "translate_command",
    "update_training_keys",
]
