"""Rows of ids as padded batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from glmtune.data.encoding import EncodedRow
from glmtune.families import IGNORE


class RowDataset(Dataset):
    """Encoded rows by number."""

    def __init__(self, rows: list[EncodedRow]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return {"input_ids": row.input_ids, "labels": row.labels, "row": index}


@dataclass
class PadRight:
    """Collates rows into a right-padded batch.

    Besides `input_ids`, `attention_mask` and `labels`, each (B, T), a batch holds what the loss needs to touch
    target positions only: `logits_to_keep` (U,), the positions at which any row predicts a target, and `targets`
    (B, U), what is predicted there (`IGNORE` where a row predicts none). `rows` (B,) are row numbers, for errors.
    """

    pad_token_id: int

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        length = max(len(feature["input_ids"]) for feature in features)
        ids_BT = torch.full((len(features), length), self.pad_token_id)
        labels_BT = torch.full((len(features), length), IGNORE)
        mask_BT = torch.zeros((len(features), length), dtype=torch.long)
        for i, feature in enumerate(features):
            n = len(feature["input_ids"])
            ids_BT[i, :n] = torch.tensor(feature["input_ids"])
            labels_BT[i, :n] = torch.tensor(feature["labels"])
            mask_BT[i, :n] = 1
        following_BT = labels_BT[:, 1:]  # what position t predicts
        keep_U = (following_BT != IGNORE).any(dim=0).nonzero().squeeze(1)
        return {
            "input_ids": ids_BT,
            "attention_mask": mask_BT,
            "labels": labels_BT,
            "logits_to_keep": keep_U,
            "targets": following_BT[:, keep_U],
            "rows": torch.tensor([feature["row"] for feature in features]),
        }
