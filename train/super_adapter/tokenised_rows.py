"""Training rows as token ids and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shearling.errors import RecipeInvalid
from shearling.evaluation.task import TaskRow

if TYPE_CHECKING:
    from torch import Tensor

IGNORED_LABEL = -100
PAD_MULTIPLE = 8


def tokenise_rows(
    rows: Sequence[TaskRow], tokenizer: Any, *, max_length: int, train_on_prompt: bool
) -> list[dict[str, list[int]]]:
    """Encode prompt and completion as one text, as evaluation will.

    The end-of-sequence token is appended where there is room (as LoNAS and Shears do). With `train_on_prompt` false the
    labels of the prompt are ignored; its length is that of the prompt encoded alone, which is how the evaluation
    harness splits a context from its continuation.

    Args:
        rows: of the train split.
        tokenizer: of the model.
        max_length: longer rows are cut at the end.
        train_on_prompt: whether the loss covers the prompt.

    Returns:
        Per row `input_ids` and `labels`, equally long.

    Raises:
        RecipeInvalid: no row has a label left after cutting.
    """
    encoded = []
    for row in rows:
        input_ids = tokenizer(row.prompt + row.completion)["input_ids"][:max_length]
        if len(input_ids) < max_length and tokenizer.eos_token_id is not None:
            input_ids.append(tokenizer.eos_token_id)
        labels = list(input_ids)
        if not train_on_prompt:
            prompt_length = len(tokenizer(row.prompt)["input_ids"])
            labels[:prompt_length] = [IGNORED_LABEL] * min(prompt_length, len(labels))
        if any(label != IGNORED_LABEL for label in labels[1:]):
            encoded.append({"input_ids": input_ids, "labels": labels})
    if not encoded:
        raise RecipeInvalid(
            f"every row is cut before its completion at {max_length} tokens", where="task.max_length", remedy="Raise it"
        )
    return encoded


@dataclass(frozen=True)
class PadToBatch:
    """Collate rows of different length into a batch, padded on the right to a multiple of eight.

    Attributes:
        pad_token_id: fills `input_ids`; the attention mask hides it and the labels ignore it.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`, each [batch, length] int64."""
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        length = -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE
        shape = (len(rows), length)
        input_ids = torch.full(shape, self.pad_token_id)
        attention_mask = torch.zeros(shape, dtype=torch.int64)
        labels = torch.full(shape, IGNORED_LABEL)
        for index, row in enumerate(rows):
            used = len(row["input_ids"])
            input_ids[index, :used] = torch.tensor(row["input_ids"])
            attention_mask[index, :used] = 1
            labels[index, :used] = torch.tensor(row["labels"])
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
