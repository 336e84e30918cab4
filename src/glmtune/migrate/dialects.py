"""All scripts whose options are flags, and which of them a command line belongs to."""

from __future__ import annotations

from glmtune.migrate.argument_names import OLD_KEYS, OLD_SWITCHES, TRAINING_KEYS, TRAINING_SWITCHES
from glmtune.migrate.chatglm3_scripts import CHATGLM3_SCRIPT
from glmtune.migrate.chatglm_finetuning import CHATGLM_FINETUNING
from glmtune.migrate.dialect import Dialect
from glmtune.migrate.finetune_demo import SCRIPT_NAMES as FINETUNE_DEMO_SCRIPTS
from glmtune.migrate.llama_factory import LLAMA_FACTORY
from glmtune.migrate.lora_scripts import FINETUNE_SCRIPT, QLORA_SCRIPT
from glmtune.migrate.ptuning_script import PTUNING_SCRIPT
from glmtune.migrate.swift_script import SWIFT_SCRIPT
from glmtune.migrate.trl_script import TRL_SCRIPT

DIALECTS = (
    PTUNING_SCRIPT,
    QLORA_SCRIPT,
    LLAMA_FACTORY,
    FINETUNE_SCRIPT,
    CHATGLM3_SCRIPT,
    CHATGLM_FINETUNING,
    SWIFT_SCRIPT,
    TRL_SCRIPT,
)
"""Scripts whose options are all flags."""

SHARED_NAMES = frozenset({"finetune.py", "train.py", "train.sh"})
"""File names that many projects use: the flags decide which script it is."""

ALL_FLAGS = frozenset().union(*(dialect.keys for dialect in DIALECTS), {"train_args_json"})
"""The flags of all scripts."""
ALL_SWITCHES = TRAINING_SWITCHES | OLD_SWITCHES


def list_script_names() -> list[str]:
    """Return the file names of the scripts that are read."""
    names = [*(name for dialect in DIALECTS for name in dialect.scripts), FINETUNE_DEMO_SCRIPTS[0]]
    return list(dict.fromkeys(names))


def find_dialect(names: set[str]) -> Dialect | None:
    """Return the script that most of the marker keys among `names` belong to."""
    best = max(DIALECTS, key=lambda dialect: _score(dialect, names))
    return best if _score(best, names) else None


def choose_dialect(script: str, names: set[str]) -> Dialect | None:
    """Return the script that a file name and flags belong to; None if no known one has them.

    Args:
        script: the file name.
        names: of the flags, with underscores.
    """
    candidates = [dialect for dialect in DIALECTS if script in dialect.scripts]
    marked = [dialect for dialect in candidates if _score(dialect, names)]
    if marked:
        return max(marked, key=lambda dialect: _score(dialect, names))
    other = find_dialect(names)
    if other:
        return other
    if script not in SHARED_NAMES:
        return candidates[0] if candidates else None
    own = names - TRAINING_KEYS - OLD_KEYS
    return next((dialect for dialect in candidates if own and own <= dialect.keys), None)


def _score(dialect: Dialect, names: set[str]) -> int:
    return len(names & dialect.marker_keys) + 10 * len(names & dialect.decisive_keys)
