"""Training rows of a classifier: a class instead of a completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shearling.evaluation.task import TaskRow
from train.super_adapter.tokenised_rows import PAD_MULTIPLE

if TYPE_CHECKING:
    from torch import Tensor


def classified_rows(rows: Sequence[TaskRow], tokenizer: Any, *, max_length: int) -> list[dict[str, Any]]:
    """Encode prompts, each with the index of its class.

    Args:
        rows: of the train split; all have a gold choice.
        tokenizer: of the model; puts its own special tokens around the text.
        max_length: longer rows are cut at the end.

    Returns:
        Per row `input_ids`, and `labels` and `gold`, both the integer.
    """
    return [
        {
            "input_ids": tokenizer(row.prompt, truncation=True, max_length=max_length)["input_ids"],
            "labels": row.gold,
            "gold": row.gold,
        }
        for row in rows
    ]


@dataclass(frozen=True)
class PadClassified:
    """Collate classified rows of different length into a batch, padded on the right to a multiple of eight."""

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask` [batch, length], and `labels` [batch], all int64."""
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        shape = (len(rows), -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE)
        input_ids, attention_mask = torch.full(shape, self.pad_token_id), torch.zeros(shape, dtype=torch.int64)
        for index, row in enumerate(rows):
            used = len(row["input_ids"])
            input_ids[index, :used] = torch.tensor(row["input_ids"])
            attention_mask[index, :used] = 1
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": torch.tensor([row["labels"] for row in rows]),
        }
