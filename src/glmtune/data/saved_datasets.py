"""Folders that `save_to_disk` of the package `datasets` writes: Arrow files and what belongs to them."""

from __future__ import annotations

from pathlib import Path

from glmtune.errors import DataError
from glmtune.utils.file_access import require_readable
from glmtune.utils.io import read_json_object

STATE_FILE = "state.json"
SPLITS_FILE = "dataset_dict.json"
_HINT = "Save it again with save_to_disk, or as JSON lines with to_json."


def find_saved_dataset(folder: Path) -> list[Path] | None:
    """The Arrow files of a folder written by `Dataset.save_to_disk`, in order; None for other folders.

    Other Arrow files of such a folder are results of `map`, which are not part of the data set.

    Raises:
        DataError: a damaged folder, one with several splits, or one that holds token ids instead of texts.
    """
    require_readable(folder)
    if (folder / SPLITS_FILE).is_file():
        splits = read_json_object(folder / SPLITS_FILE, DataError, _HINT).get("splits")
        names = [name for name in splits if isinstance(name, str)] if isinstance(splits, list) else []
        if len(names) == 1:
            return find_saved_dataset(folder / names[0])
        raise DataError(
            f"{folder}: a saved DatasetDict with the splits {', '.join(names[:8]) or 'of an unknown kind'}.",
            f"Give one of them: {folder / names[0]}" if names else _HINT,
        )
    if not (folder / STATE_FILE).is_file():
        return None
    state = read_json_object(folder / STATE_FILE, DataError, _HINT)
    entries = state.get("_data_files")
    if not isinstance(entries, list) or "_fingerprint" not in state:
        return None
    names = [str(entry.get("filename")) for entry in entries if isinstance(entry, dict)]
    if state.get("_indices_data_files"):
        raise DataError(f"{folder}: a saved selection of the rows of another file, in the old format.", _HINT)
    files = [folder / Path(name).name for name in names]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None or not files:
        raise DataError(f"{folder}: a saved data set without its file {missing or '(none is listed)'}.", _HINT)
    return files


def require_texts(columns: dict[str, str], path: Path) -> None:
    """Check that a table is not one of token ids, as older trainers prepare and save it.

    Raises:
        DataError: it has a column `input_ids`.
    """
    if "input_ids" in columns:
        raise DataError(
            f"{path}: rows of token ids ({', '.join(columns)}), prepared for another program.",
            "Give the file of texts that they were made from.",
        )
