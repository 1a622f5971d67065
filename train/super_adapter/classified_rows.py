"""Training rows of a classifier: a class instead of a completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from shearling.evaluation.task import TaskRow
from train.super_adapter.tokenised_rows import PAD_MULTIPLE
from train.task.row_account import RowAccount

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ClassifiedRows:
    """Encodes prompts, many at once, each with the index of its class.

    Attributes:
        tokenizer: of the model; puts its own special tokens around the text.
        max_length: of longer rows the end of the text is cut off.
    """

    label_each_token: ClassVar[bool] = False

    tokenizer: Any
    max_length: int

    def __call__(
        self, rows: Sequence[TaskRow], *, first: int = 1, account: RowAccount | None = None
    ) -> list[dict[str, Any]]:
        """Encode rows of one task, all of which have a gold choice; none is left out.

        Args:
            rows: of one task.
            first: number of the first of them.
            account: told which rows were cut.

        Returns:
            Per row `input_ids`, and `labels` and `gold`, both the integer.
        """
        encoded = list(self.tokenizer([row.prompt for row in rows])["input_ids"])
        long = [place for place, ids in enumerate(encoded) if len(ids) > self.max_length]
        for place, ids in zip(long, self._cut([rows[place].prompt for place in long]), strict=True):
            encoded[place] = ids
            if account is not None:
                account.note("cut_prompt", first + place)
        return [
            {"input_ids": list(ids), "labels": row.gold, "gold": row.gold}
            for ids, row in zip(encoded, rows, strict=True)
        ]

    def _cut(self, prompts: Sequence[str]) -> list[list[int]]:
        """What is left of long prompts, with the special tokens that the tokenizer puts behind them."""
        if not prompts:
            return []
        cut: list[list[int]] = self.tokenizer(list(prompts), truncation=True, max_length=self.max_length)["input_ids"]
        return cut


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
