"""What is learnt, as token ids in memory-mapped Arrow files: millions of rows take no memory.

`datasets` writes them once, in batches, beside the checkpoints; every process of a training reads the same files.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from shearling.errors import ModelUnsupported, RecipeInvalid
from shearling.evaluation.task import Split, TaskRow, rows_file
from train.task.row_account import RowAccount

if TYPE_CHECKING:
    from datasets import Dataset

BATCH_ROWS = 256
"""Rows that are tokenised at once."""


class RowEncoder(Protocol):
    """Tokenises rows; see `RowTokeniser` and `ClassifiedRows`."""

    label_each_token: ClassVar[bool]
    """Whether `labels` are a list, or one integer."""

    @property
    def tokenizer(self) -> Any:
        """Of the model."""
        ...

    @property
    def max_length(self) -> int:
        """Most tokens of an encoded row."""
        ...

    def __call__(
        self, rows: Sequence[TaskRow], *, first: int = 1, account: RowAccount | None = None
    ) -> list[dict[str, Any]]:
        """Encoded rows with `input_ids`, `labels` and `gold`, fewer or more than were given."""
        ...


def encode_rows(
    directory: Path,
    split: Split,
    encode: RowEncoder,
    destination: Path,
    account: RowAccount,
    *,
    readable: int,
    where: str,
) -> int:
    """Tokenise a split of a task into an Arrow file.

    Args:
        directory: a `task` artefact.
        split: which rows.
        encode: tokenises some of them.
        destination: the file; what stands there is replaced. For a while the rows stand beside it as well.
        account: told what became of rows.
        readable: how many token ids the model can read.
        where: the section of the recipe.

    Returns:
        How many rows were read.

    Raises:
        RecipeInvalid: nothing is left to learn.
        ModelUnsupported: a row has a token that the model has no embedding of.
    """
    import datasets

    scratch = destination.with_suffix(".rows")
    shutil.rmtree(scratch, ignore_errors=True)
    destination.parent.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_generator(
        _lines,
        gen_kwargs={"file": str(rows_file(directory, split))},
        features=datasets.Features({"row": datasets.Value("large_string")}),
        cache_dir=str(scratch),
    )

    def tokenise(batch: dict[str, list[str]], places: list[int]) -> dict[str, list[Any]]:
        read = [TaskRow.model_validate_json(line) for line in batch["row"]]
        encoded = encode(read, first=places[0] + 1, account=account)
        _check_readable(encoded, split, encode, readable=readable, where=where)
        columns = {name: [row[name] for row in encoded] for name in ("input_ids", "labels", "gold")}
        return {**columns, "length": [len(ids) for ids in columns["input_ids"]]}

    token = datasets.Value("int32")
    encoded = rows.map(
        tokenise,
        batched=True,
        batch_size=BATCH_ROWS,
        with_indices=True,
        remove_columns=["row"],
        features=datasets.Features(
            {
                "input_ids": datasets.List(token),
                "labels": datasets.List(token) if encode.label_each_token else token,
                "gold": token,
                "length": token,
            }
        ),
        cache_file_name=str(destination),
        # Its name in a cache that nobody looks into: without one, tokenizer and account would be hashed.
        new_fingerprint=destination.stem,
        load_from_cache_file=False,
    )
    count = len(rows)
    del rows
    shutil.rmtree(scratch)
    if len(encoded) == 0:
        raise _nothing_left(split, encode, where=where)
    return count


def check_rows(directory: Path, split: Split, encode: RowEncoder, *, readable: int, where: str) -> None:
    """See that something of a split can be learnt, before hours of work: no more is tokenised than that takes, unless
    the tokenizer knows more tokens than the model.

    Args:
        directory: a `task` artefact.
        split: which rows.
        encode: tokenises some of them.
        readable: how many token ids the model can read.
        where: the section of the recipe.

    Raises:
        RecipeInvalid: nothing is left to learn.
        ModelUnsupported: a row has a token that the model has no embedding of.
    """
    lines = (line["row"] for line in _lines(str(rows_file(directory, split))))
    learnable, any_may_be_unreadable = False, len(encode.tokenizer) > readable
    while (any_may_be_unreadable or not learnable) and (batch := list(itertools.islice(lines, BATCH_ROWS))):
        encoded = encode([TaskRow.model_validate_json(line) for line in batch])
        _check_readable(encoded, split, encode, readable=readable, where=where)
        learnable = learnable or bool(encoded)
    if not learnable:
        raise _nothing_left(split, encode, where=where)


def _check_readable(
    encoded: Sequence[Mapping[str, Any]], split: Split, encode: RowEncoder, *, readable: int, where: str
) -> None:
    largest = max((max(row["input_ids"], default=0) for row in encoded), default=0)
    if largest >= readable:
        raise ModelUnsupported(
            f"a {split} row has the token {encode.tokenizer.convert_ids_to_tokens(largest)!r}, id {largest}, and the "
            f"model has {readable} embeddings",
            where=where,
            remedy="Resize its embedding to the tokenizer (resize_token_embeddings), or take the token out of the data",
        )


def _nothing_left(split: Split, encode: RowEncoder, *, where: str) -> RecipeInvalid:
    return RecipeInvalid(
        f"every {split} row is cut before its completion at {encode.max_length} tokens",
        where=f"{where}.max_length",
        remedy="Raise it",
    )


def load_encoded(file: Path) -> Dataset:
    """What `encode_rows` wrote: `input_ids`, `labels`, `gold` and `length` of every row, read when it is asked for."""
    import datasets

    return datasets.Dataset.from_file(str(file))


def _lines(file: str) -> Iterator[dict[str, str]]:
    with Path(file).open(encoding="utf-8") as stream:
        for line in stream:
            yield {"row": line}
