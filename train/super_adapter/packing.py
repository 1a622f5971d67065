"""Several rows in one sequence, without padding between them, and none sees another.

The position ids of a sequence start again at every row. transformers makes a block-diagonal attention mask of them, for
every attention that its models have, where no other mask is given. What a model does with them is tried on it before
the training: one that ignores them would learn from its neighbours in silence.
"""

from __future__ import annotations

import bisect
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from shearling.errors import ModelUnsupported
from shearling.model.layers import find_layers
from shearling.model.token_ids import readable_ids
from shearling.model.width_tracing import build_from_config
from train.super_adapter.tokenised_rows import IGNORED_LABEL, PAD_MULTIPLE

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedConfig

WINDOW_ROWS = 4096
"""Rows among which those that fill a sequence are looked for."""

SMALL_LAYERS, SMALL_VOCABULARY = 2, 64
"""Of the model that packing is tried on before there is time to load the real one."""

LARGEST_DIFFERENCE = 1e-3
"""Of logits, relative to the largest, between a row alone and in a pack; more where the weights are coarser."""


class PackedRows(TorchDataset[list[dict[str, Any]]]):
    """Encoded rows in packs.

    Args:
        rows: from `load_encoded`.
        tokens: most of a pack; a longer row is a pack of its own.
        seed: of the order in which rows are packed.
    """

    def __init__(self, rows: Dataset, *, tokens: int, seed: int) -> None:
        self._rows = rows
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        self.packs = list(pack(rows["length"][:], order, tokens=tokens))

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, place: int) -> list[dict[str, Any]]:
        return [self._rows[row] for row in self.packs[place]]


def pack(lengths: Sequence[int], order: Sequence[int], *, tokens: int) -> Iterator[list[int]]:
    """Rows that share a sequence: the longest first, each where it leaves the least room (best fit decreasing).

    Args:
        lengths: tokens of each row.
        order: of the rows; those of `WINDOW_ROWS` behind each other are packed together.
        tokens: most of a pack.

    Yields:
        Places of rows, each of them once.
    """
    for start in range(0, len(order), WINDOW_ROWS):
        packs: list[list[int]] = []
        room: list[tuple[int, int]] = []
        for row in sorted(order[start : start + WINDOW_ROWS], key=lambda row: -lengths[row]):
            at = bisect.bisect_left(room, (lengths[row], -1))
            if at == len(room):
                left, index = tokens, len(packs)
                packs.append([])
            else:
                left, index = room.pop(at)
            packs[index].append(row)
            if left > lengths[row]:
                bisect.insort(room, (left - lengths[row], index))
        yield from packs


@dataclass(frozen=True)
class PadPacks:
    """Collate packs into a batch, padded on the right to a multiple of eight.

    Attributes:
        pad_token_id: fills `input_ids`; each is a row of its own, of which nothing is learnt.
    """

    pad_token_id: int

    def __call__(self, packs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Tensor]:
        """Return `input_ids`, `position_ids` and `labels`, each [packs, length] int64.

        A position id of 0 is where a row begins; its label counts as it does in a batch of rows, and is never learnt.
        """
        lengths = [sum(len(row["input_ids"]) for row in rows) for rows in packs]
        shape = (len(packs), -(-max(lengths) // PAD_MULTIPLE) * PAD_MULTIPLE)
        input_ids = torch.full(shape, self.pad_token_id)
        position_ids = torch.zeros(shape, dtype=torch.int64)
        labels = torch.full(shape, IGNORED_LABEL)
        for index, (rows, used) in enumerate(zip(packs, lengths, strict=True)):
            input_ids[index, :used] = torch.tensor([token for row in rows for token in row["input_ids"]])
            position_ids[index, :used] = torch.cat([torch.arange(len(row["input_ids"])) for row in rows])
            labels[index, :used] = torch.tensor([label for row in rows for label in row["labels"]])
        return {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}


def check_packing(model: nn.Module, pad_token_id: int) -> None:
    """See that a row in a pack has the logits that it has alone.

    Args:
        model: a causal language model.
        pad_token_id: for the batches.

    Raises:
        ModelUnsupported: it takes no position ids, or a row sees its neighbour.
    """
    vocabulary = readable_ids(model)
    first, other, *rows = ([(7 * place + 3 * seed) % vocabulary for place in range(9 - seed)] for seed in (0, 0, 4, 7))
    other = [(token + 1) % vocabulary for token in other]
    parameter = next(model.parameters())
    collate, training = PadPacks(pad_token_id), model.training

    def packed(*members: list[int]) -> Tensor:
        batch = collate([[{"input_ids": row, "labels": row} for row in members]])
        return _logits(model, {name: ids.to(parameter.device) for name, ids in batch.items()})

    model.eval()
    try:
        with torch.no_grad():
            length = len(first) + sum(map(len, rows))
            beside, beside_other = packed(first, *rows)[:length], packed(other, *rows)[:length]
            alone = [_logits(model, {"input_ids": torch.tensor([row], device=parameter.device)}) for row in rows]
    except TypeError as error:
        raise _unsupported("it takes no position ids") from error
    finally:
        model.train(training)
    scale, tail = float(beside.abs().max()), slice(len(first), None)
    if not torch.allclose(beside[tail], beside_other[tail], rtol=0, atol=1e-5 * scale):
        raise _unsupported("a row's logits change with its neighbour")
    difference = float((beside[tail] - torch.cat(alone)).abs().max()) / scale
    if not difference <= max(LARGEST_DIFFERENCE, 16 * torch.finfo(parameter.dtype).eps):
        raise _unsupported(f"a row's logits change by {difference:.2g} of the largest behind another")


def try_packing(config: PreTrainedConfig) -> None:
    """See before any training whether models of an architecture keep packed rows apart: on one of two layers, few
    tokens and random weights, where the architecture has such a one.

    Args:
        config: of the model; not modified.

    Raises:
        ModelUnsupported: see `check_packing`.
    """
    small = copy.deepcopy(config)
    small.num_hidden_layers, small.vocab_size, small.pad_token_id = SMALL_LAYERS, SMALL_VOCABULARY, None
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[:SMALL_LAYERS]
    try:
        with torch.device("meta"):
            structure = find_layers(build_from_config(small))
        if len(structure.layers) > SMALL_LAYERS:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build_from_config(small)
    # Configurations refuse what does not go together with errors of every kind; the training tries the model itself.
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, ModelUnsupported):
        return
    check_packing(model, 0)


def _logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """[length, vocabulary] of the only row."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits: Tensor = model(**inputs, use_cache=False).logits[0].float()
    return logits


def _unsupported(why: str) -> ModelUnsupported:
    return ModelUnsupported(
        f"rows of this model cannot share a sequence: {why}",
        where="train.pack_tokens",
        remedy="Leave it out; group_by_length saves padding with every model",
    )
