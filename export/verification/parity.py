"""How far an exported model is from its reference: logits on the same inputs, prefill and step-by-step decoding.

Each runtime reads the first part of a block in one call and the rest token by token through its KV cache, so one pass
covers both phases; the reference is torch without a cache. KL is in nats, over softmax in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pydantic

from shearling.model.head import Head
from shearling.registry.number_formats import Gate
from shearling.strict_json import Document

if TYPE_CHECKING:
    from torch import nn

Logits = list[npt.NDArray[np.float32]]
"""Per block [tokens, vocabulary]."""
LogitsInTurn = Iterable[npt.NDArray[np.float32]]
"""The same to be read once, so that one block's are held at a time."""

_Losses = npt.NDArray[np.float64]
Arithmetic = Literal["float32", "float64", "bfloat16"]

BLOCK_TOKENS = 40
MOST_STEPS = 32
"""Tokens of a block that are read one by one."""
BATCH_ROWS, BATCH_TOKENS = 4, 256
"""Of a padded batch: at most so many rows, of at most so many tokens each."""
POSITIONS_AT_ONCE = 16
RANDOM_BLOCKS = 1
SEED = 0
TEXT = (
    "A language model predicts the next word from the words before it. Most of its time is spent "
    "reading weights from memory, one "
    "matrix after another, for every single token. If half of those weights are exactly zero, there "
    "is less to read, provided that "
    "the zeros survive fine-tuning, merging, and the conversion to the format in which the model is finally served. "
    "Scientists report that the local election was won by a cat, which declined to comment; the "
    "mayor called the result encouraging."
)
"""Plain English, written for this purpose; what matters is that it never changes."""


def _null_as_nan(value: Any) -> Any:
    return math.nan if value is None else value


def _finite_or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


Measure = Annotated[
    float,
    pydantic.AllowInfNan(True),
    pydantic.BeforeValidator(_null_as_nan),
    pydantic.PlainSerializer(_finite_or_null, when_used="json"),
]
"""NaN or infinite where the logits are, which the gate must see; JSON has neither, and says null."""


class Parity(Document):
    """Distance of a candidate's logits from a reference's.

    Attributes:
        max_abs: largest absolute difference of a logit.
        kl_mean: mean over positions of KL(reference || candidate), nats.
        top1_agreement: share of positions with the same most likely token.
        perplexity: of the candidate on the text blocks; `reference_perplexity` likewise.
        positions: that were compared.
    """

    max_abs: Measure
    mean_abs: Measure
    kl_mean: Measure
    kl_max: Measure
    top1_agreement: float
    perplexity: Measure
    reference_perplexity: Measure
    positions: int

    @property
    def finite(self) -> bool:
        """Whether every logit that was compared is a finite number."""
        return math.isfinite(self.mean_abs)


def broken_limits(gate: Gate, parity: Parity) -> list[str]:
    """One line per limit that `parity` breaks; logits that are NaN or infinite break every gate."""
    if not parity.finite:
        return ["the logits hold NaN or infinity"]
    checks = (("max |Δlogit|", parity.max_abs, gate.max_abs), ("mean KL", parity.kl_mean, gate.kl_mean))
    broken = [
        f"{name} {value:.3g} exceeds {limit:g}" for name, value, limit in checks if limit is not None and value > limit
    ]
    if gate.top1_agreement is not None and parity.top1_agreement < gate.top1_agreement:
        broken.append(f"top-1 agreement {parity.top1_agreement:.1%} is below {gate.top1_agreement:.0%}")
    return broken


ROUNDING_ALLOWANCE, LARGEST_LIMIT = 4.0, 1e-2
"""A difference of four times the reference's own rounding says nothing about the export, for both sides round, in
other orders; beyond the largest limit nothing is excused."""


def widen(gate: Gate, rounding: float) -> Gate:
    """The gate for a reference whose logits float32 itself cannot tell more exactly.

    Args:
        gate: of a float32 candidate.
        rounding: see `rounding_of`.
    """
    if gate.max_abs is None:
        return gate
    return gate.model_copy(update={"max_abs": max(gate.max_abs, min(ROUNDING_ALLOWANCE * rounding, LARGEST_LIMIT))})


def fixed_blocks(tokenizer: Any, *, vocabulary: int) -> list[npt.NDArray[np.int64]]:
    """The inputs of every parity check: blocks of text, then one of random tokens, each [tokens] int64.

    Args:
        tokenizer: of the model.
        vocabulary: random ids are drawn below it.
    """
    ids = np.array(tokenizer(TEXT)["input_ids"], dtype=np.int64)
    blocks = [ids[start : start + BLOCK_TOKENS] for start in range(0, len(ids) - 7, BLOCK_TOKENS)][:4]
    random = np.random.default_rng(SEED)
    return blocks + [random.integers(vocabulary, size=BLOCK_TOKENS) for _ in range(RANDOM_BLOCKS)]


def cached_calls(block: npt.NDArray[np.int64]) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Inputs of each call that reads a block through a cache: its second half token by token, or its last
    `MOST_STEPS`, and before that the rest at once.
    """
    start = len(block) - min(len(block) // 2, MOST_STEPS)
    for begin, end in [(0, start), *((position, position + 1) for position in range(start, len(block)))]:
        yield {
            "input_ids": block[None, begin:end],
            "attention_mask": np.ones((1, end), dtype=np.int64),
            "position_ids": np.arange(begin, end, dtype=np.int64)[None],
        }


@dataclass(frozen=True)
class PaddedBatch:
    """Rows of unlike length in one call.

    Attributes:
        feed: `input_ids`, `attention_mask` and `position_ids`, [rows, length] each.
        lengths: tokens of each row that are no padding.
        head: what the model is for.
        left: whether it is padded on the left.
    """

    feed: dict[str, npt.NDArray[np.int64]]
    lengths: tuple[int, ...]
    head: Head
    left: bool

    def rows_of(self, logits: npt.NDArray[Any]) -> Logits:
        """Logits of each row's own tokens, as if it had been read alone.

        Args:
            logits: of a decoder [rows, length, vocabulary], of a classifier [rows, classes].
        """
        halves = logits.astype(np.float32, copy=False)
        if self.head == "classifier":
            return [row[None] for row in halves]
        return [row[-length:] if self.left else row[:length] for row, length in zip(halves, self.lengths, strict=True)]


def padded_batch(
    blocks: Sequence[npt.NDArray[np.int64]], *, head: Head, fused: bool = False, filler: int = 0
) -> PaddedBatch:
    """Up to `BATCH_ROWS` rows: of a decoder the beginnings of blocks, each shorter than the one before, padded on the
    left as for decoding; of a classifier whole blocks, padded on the right.

    Args:
        blocks: of at least two tokens.
        head: what the model is for.
        fused: whether it is a decoder of fused operators, which is padded on the right, too.
        filler: the token of padding. Classifiers on a decoder's body look for it, and read what stands before.
    """
    decodes = head == "language_model"
    left = decodes and not fused
    rows = [
        block[: max(2, min(len(block), BATCH_TOKENS) * (BATCH_ROWS - place) // BATCH_ROWS)] if decodes else block
        for place, block in enumerate(blocks[:BATCH_ROWS])
    ]
    longest = max(len(row) for row in rows)
    ids, mask = (np.full((len(rows), longest), value, dtype=np.int64) for value in (filler, 0))
    for place, row in enumerate(rows):
        own = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[place, own], mask[place, own] = row, 1
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    feed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return PaddedBatch(feed, tuple(len(row) for row in rows), head, left)


@np.errstate(invalid="ignore", over="ignore")
def compare(
    reference: Logits,
    candidate: LogitsInTurn,
    blocks: Sequence[npt.NDArray[np.int64]],
    *,
    random_blocks: int = RANDOM_BLOCKS,
) -> Parity:
    """Measure how far `candidate` is from `reference`.

    Args:
        reference: logits of the trusted model on `blocks`.
        candidate: logits of the other; of fewer blocks, or of fewer positions of a block, where it was asked no more.
        blocks: what both read; perplexity is taken on all but the random ones, of a classifier on the reference's
            answers.
        random_blocks: of random tokens, at the end.
    """
    distances: list[_Distance] = []
    losses: list[_Losses] = []
    reference_losses: list[_Losses] = []
    for place, right in enumerate(candidate):
        left = reference[place][: len(right)]
        distances += [_distance(*pair) for pair in _parts(left, right)]
        if place < len(blocks) - random_blocks:
            targets = _targets(left, blocks[place])
            losses += _losses(right, targets)
            reference_losses += _losses(left, targets)
    kl = np.concatenate([item.kl for item in distances])
    same = np.concatenate([item.same for item in distances])
    return Parity(
        max_abs=float(np.max([item.max_abs for item in distances])),
        mean_abs=float(sum(item.mean_abs * len(item.kl) for item in distances) / len(kl)),
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        top1_agreement=float(same.mean()),
        perplexity=_perplexity(losses),
        reference_perplexity=_perplexity(reference_losses),
        positions=len(kl),
    )


@dataclass(frozen=True)
class _Distance:
    """Of some positions: see `Parity`."""

    max_abs: float
    mean_abs: float
    kl: npt.NDArray[np.float64]
    same: npt.NDArray[np.bool_]


def _parts(left: npt.NDArray[np.float32], right: npt.NDArray[Any]) -> Iterator[tuple[Any, Any]]:
    """Some positions at a time: in float64 a vocabulary is large."""
    for start in range(0, len(left), POSITIONS_AT_ONCE):
        place = slice(start, start + POSITIONS_AT_ONCE)
        yield left[place], right[place]


def _distance(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> _Distance:
    absolute = np.abs(left.astype(np.float64) - right)
    same = left.argmax(-1) == right.argmax(-1)
    return _Distance(float(absolute.max()), float(absolute.mean()), _kl(left, right), np.asarray(same))


def torch_logits(
    model: nn.Module,
    blocks: Sequence[npt.NDArray[np.int64]],
    *,
    head: Head = "language_model",
    arithmetic: Arithmetic = "float32",
) -> Logits:
    """Logits of a torch model, whole blocks at once, without a cache.

    Args:
        model: eval mode; with weights of any type, of which one module at a time is converted where that is needed.
        blocks: inputs.
        head: what the model is for.
        arithmetic: in what it computes; bfloat16 is autocast.
    """
    import torch

    from shearling.model.arithmetic import computed_in

    options: dict[str, Any] = {} if head == "classifier" else {"use_cache": False}
    wide = torch.float64 if arithmetic == "float64" else torch.float32
    halved = torch.autocast("cpu", torch.bfloat16, enabled=arithmetic == "bfloat16")
    # Where every forward converts all weights, blocks of one length share it.
    converts = any(parameter.is_floating_point() and parameter.dtype != wide for parameter in model.parameters())
    results: Logits = []
    with torch.inference_mode(), computed_in(model, wide), halved:
        for batch in _stacked(blocks, together=converts and head == "language_model"):
            logits = model(input_ids=torch.from_numpy(batch), **options).logits.float().numpy()
            # A decoder answers for every position, a classifier once.
            results += list(logits) if logits.ndim == 3 else [logits]
    return results


def _stacked(blocks: Sequence[npt.NDArray[np.int64]], *, together: bool) -> Iterator[npt.NDArray[np.int64]]:
    """The blocks in their order, [rows, tokens] each: one row, or as many of one length as follow each other."""
    rows: list[npt.NDArray[np.int64]] = []
    for block in blocks:
        if rows and not (together and len(block) == len(rows[0])):
            yield np.stack(rows)
            rows = []
        rows.append(block)
    if rows:
        yield np.stack(rows)


def rounding_of(
    model: Any, blocks: Sequence[npt.NDArray[np.int64]], logits: Logits, *, head: Head = "language_model"
) -> float:
    """The largest change of a logit when torch multiplies in float64 instead: how well the model determines its own
    logits.

    Normalisations that cast to float32 by themselves stay so.

    Args:
        model: eval mode.
        blocks: inputs.
        logits: of the model in float32 on them.
        head: what the model is for.
    """
    exact = torch_logits(model, blocks, head=head, arithmetic="float64")
    return float(max(np.abs(left - right).max() for left, right in zip(exact, logits, strict=True)))


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def _kl(reference: npt.NDArray[np.float32], candidate: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    log_p, log_q = _log_softmax(reference), _log_softmax(candidate)
    result: npt.NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    return result


def _targets(reference: npt.NDArray[np.float32], block: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The tokens that follow, or the class that the reference names."""
    targets: npt.NDArray[np.int64] = reference.argmax(-1) if len(reference) == 1 else block[1 : len(reference) + 1]
    return targets


def _losses(logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> list[_Losses]:
    """Nats that the tokens that follow cost, some positions at a time."""
    return [
        -_log_softmax(part)[np.arange(len(tokens)), tokens]
        for part, tokens in _parts(logits[: len(targets)], targets[: len(logits)])
    ]


def _perplexity(losses: Sequence[_Losses]) -> float:
    return float(np.exp(np.concatenate(losses).mean()))
