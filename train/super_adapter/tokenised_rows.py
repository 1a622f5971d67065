"""Training rows as token ids and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shearling.errors import RecipeInvalid
from shearling.evaluation.answer_tokens import TextEncoder, split_answer
from shearling.evaluation.task import TaskRow
from train.task.row_account import RowAccount

if TYPE_CHECKING:
    from torch import Tensor

IGNORED_LABEL = -100
PAD_MULTIPLE = 8


def tokenise_rows(
    rows: Sequence[TaskRow],
    tokenizer: Any,
    *,
    max_length: int,
    train_on_prompt: bool,
    train_on_end: bool = True,
    account: RowAccount | None = None,
) -> list[dict[str, Any]]:
    """Encode prompt and completion as one text, as evaluation will.

    With `train_on_prompt` false the labels of the prompt are ignored; which tokens are the prompt's is decided by the
    rule of evaluation, `split_answer`.

    Args:
        rows: of the train split.
        tokenizer: of the model.
        max_length: longer rows are cut at the end.
        train_on_prompt: whether the loss covers the prompt.
        train_on_end: append the end-of-sequence token where there is room, and learn it (as LoNAS and Shears do).
        account: told which rows, counted from 1, were cut or have nothing to learn.

    Returns:
        Per row `input_ids` and `labels`, equally long, and `gold`, the index of the right choice or None.

    Raises:
        RecipeInvalid: no row has a label left after cutting.
    """
    encode = TextEncoder(tokenizer)
    account = RowAccount() if account is None else account
    encoded = []
    for number, row in enumerate(rows, start=1):
        prompt, answer = split_answer(encode, row.prompt, row.completion)
        whole = [*prompt, *answer]
        if train_on_end and tokenizer.eos_token_id is not None and whole[-1:] != [tokenizer.eos_token_id]:
            whole.append(tokenizer.eos_token_id)
        input_ids = whole[:max_length]
        ignored = 0 if train_on_prompt else min(len(prompt), len(input_ids))
        labels = [IGNORED_LABEL] * ignored + input_ids[ignored:]
        if all(label == IGNORED_LABEL for label in labels[1:]):
            account.note("unlabelled", number)
            continue
        if len(prompt) + len(answer) > max_length:
            account.note("cut", number)
        encoded.append({"input_ids": input_ids, "labels": labels, "gold": row.gold})
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

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
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
