"""Training rows as token ids and labels."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from shearling.evaluation.answer_tokens import split_encoded
from shearling.evaluation.task import TaskRow
from shearling.model.text_encoder import TextEncoder
from train.task.chat import token_spans
from train.task.row_account import RowAccount

if TYPE_CHECKING:
    from torch import Tensor

IGNORED_LABEL = -100
PAD_MULTIPLE = 8


@dataclass(frozen=True)
class RowTokeniser:
    """Encodes rows, many at once.

    Attributes:
        tokenizer: of the model.
        max_length: longer rows are cut at the end; a text without a prompt is cut into several.
        train_on_prompt: whether the loss covers the prompt.
        train_on_end: append the end-of-sequence token where there is room, and learn it (as LoNAS and Shears do).
    """

    label_each_token: ClassVar[bool] = True

    tokenizer: Any
    max_length: int
    train_on_prompt: bool
    train_on_end: bool = True

    def __call__(
        self, rows: Sequence[TaskRow], *, first: int = 1, account: RowAccount | None = None
    ) -> list[dict[str, Any]]:
        """Encode prompt and completion as one text, as evaluation will.

        With `train_on_prompt` false the labels of the prompt are ignored; which tokens are the prompt's is decided by
        the rule of evaluation, `split_answer`. Of a conversation the tokens are learnt that cover a character of the
        assistant's.

        Args:
            rows: of one task.
            first: number of the first of them.
            account: told which rows were cut or have nothing to learn.

        Returns:
            Per row `input_ids` and `labels`, equally long, and `gold`, the index of the right choice or None; rows
            without anything to learn are left out.
        """
        account = RowAccount() if account is None else account
        encode = TextEncoder(self.tokenizer)
        conversations = iter(self._conversations([row for row in rows if row.tail is not None]))
        plain = [row for row in rows if row.tail is None]
        answers = iter(
            zip(
                encode.batch([row.prompt + row.completion for row in plain]),
                encode.batch([row.prompt.rstrip() for row in plain]),
                strict=True,
            )
        )
        encoded = []
        for number, row in enumerate(rows, start=first):
            tokens = next(conversations) if row.tail is not None else self._answer(*next(answers))
            for part in self._parts(row, len(tokens.ids)):
                labels = tokens.labels[part]
                if all(label == IGNORED_LABEL for label in labels[1:]):
                    account.note("unlabelled", number)
                    continue
                if row.prompt and tokens.wanted > self.max_length:
                    account.note("cut", number)
                encoded.append({"input_ids": tokens.ids[part], "labels": labels, "gold": row.gold})
        return encoded

    def _parts(self, row: TaskRow, length: int) -> list[slice]:
        """The sequences that a row becomes: one, or of a text without a prompt as many as it fills."""
        if row.prompt:
            return [slice(0, self.max_length)]
        # Of a last token alone nothing could be learnt.
        starts = range(0, max(1, length - 1), self.max_length)
        return [slice(start, start + self.max_length) for start in starts]

    def _answer(self, whole: tuple[int, ...], alone: tuple[int, ...]) -> _Tokens:
        prompt, answer = split_encoded(whole, alone)
        end = self.tokenizer.eos_token_id
        ids = [*prompt, *answer]
        if self.train_on_end and end is not None and ids[-1:] != [end]:
            ids.append(end)
        ignored = 0 if self.train_on_prompt else len(prompt)
        return _Tokens(ids, [IGNORED_LABEL] * ignored + ids[ignored:], len(prompt) + len(answer))

    def _conversations(self, rows: Sequence[TaskRow]) -> list[_Tokens]:
        if not rows:
            return []
        encoded = self.tokenizer(
            [row.prompt + row.completion + (row.tail or "") for row in rows],
            add_special_tokens=False,
            return_offsets_mapping=True,
        )
        conversations = []
        for row, ids, offsets in zip(rows, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            labels = list(ids) if self.train_on_prompt else _labels(ids, offsets, row.learnt or ())
            learnt = [place for place, label in enumerate(labels) if label != IGNORED_LABEL]
            conversations.append(_Tokens(list(ids), labels, learnt[-1] + 1 if learnt else 0))
        return conversations


@dataclass(frozen=True)
class _Tokens:
    """A row before it is cut; `wanted` tokens of it hold all that is to be learnt."""

    ids: list[int]
    labels: list[int]
    wanted: int


def _labels(ids: Sequence[int], offsets: Sequence[tuple[int, int]], learnt: Sequence[tuple[int, int]]) -> list[int]:
    """The tokens that cover a learnt character; spans and tokens follow each other in the text."""
    labels, spans = [], deque(learnt)
    for token, (start, end) in zip(ids, token_spans(offsets), strict=True):
        while spans and spans[0][1] <= start:
            spans.popleft()
        labels.append(token if spans and end > spans[0][0] and end > start else IGNORED_LABEL)
    return labels


def next_labels(batch: Mapping[str, Tensor]) -> Tensor:
    """What each position is to predict, [rows, length - 1] int64, `IGNORED_LABEL` where there is nothing to learn.

    Args:
        batch: with `labels`; where rows are packed with `position_ids`, which are 0 where a row begins: the position
            before it belongs to another row.
    """
    labels = batch["labels"][:, 1:]
    return (
        labels if "position_ids" not in batch else labels.masked_fill(batch["position_ids"][:, 1:] == 0, IGNORED_LABEL)
    )


def next_is_text(batch: Mapping[str, Tensor]) -> Tensor:
    """Whether the next position goes on in the same row, [rows, length - 1] bool."""
    if "position_ids" in batch:
        return batch["position_ids"][:, 1:] > 0
    return batch["attention_mask"][:, 1:].bool()


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
