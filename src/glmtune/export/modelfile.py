"""The Modelfile beside a GGUF file, from which Ollama makes a model: prompt and stop words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from glmtune.models.tokenizers.ollama_templates import OLLAMA_TEMPLATES
from glmtune.utils.io import write_text

if TYPE_CHECKING:
    from glmtune.export.gguf_vocabulary import GgufVocabulary
    from glmtune.families import Family


def write_modelfile(folder: Path, file_name: str, family: Family, vocabulary: GgufVocabulary) -> None:
    """Write `Modelfile` (https://github.com/ollama/ollama/blob/main/docs/modelfile.md).

    Args:
        folder: of the GGUF file.
        file_name: its name.
        family: decides the prompt.
        vocabulary: of the file, which names the stop tokens.
    """
    lines = [f"FROM ./{file_name}", f'TEMPLATE """{OLLAMA_TEMPLATES[family.name]}"""']
    lines += [f'PARAMETER stop "{vocabulary.tokens[index]}"' for index in vocabulary.stop_ids]
    write_text(folder / "Modelfile", "\n".join(lines) + "\n")
