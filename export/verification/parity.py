"""How far an exported model is from its reference: logits on fixed inputs, prefill and step-by-step decoding.

Each runtime reads the first half of a block in one call and the rest token by token through its KV cache, so one pass
covers both phases; the reference is torch without a cache. KL is in nats, over softmax in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shearling.registry.number_formats import Gate
from shearling.strict_json import Document

if TYPE_CHECKING:
    from torch import nn

    from shearling.model.head import Head

Logits = list[npt.NDArray[np.float32]]
"""Per block [tokens, vocabulary]."""

BLOCK_TOKENS = 40
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


class Parity(Document):
    """Distance of a candidate's logits from a reference's.

    Attributes:
        max_abs: largest absolute difference of a logit.
        kl_mean: mean over positions of KL(reference || candidate), nats.
        top1_agreement: share of positions with the same most likely token.
        perplexity: of the candidate on the text blocks; `reference_perplexity` likewise.
    """

    max_abs: float
    mean_abs: float
    kl_mean: float
    kl_max: float
    top1_agreement: float
    perplexity: float
    reference_perplexity: float


def broken_limits(gate: Gate, parity: Parity) -> list[str]:
    """One line per limit that `parity` breaks."""
    ratio = parity.perplexity / parity.reference_perplexity
    checks = (
        ("max |Δlogit|", parity.max_abs, gate.max_abs),
        ("mean KL", parity.kl_mean, gate.kl_mean),
        ("perplexity ratio", ratio, gate.perplexity_ratio),
    )
    # Written so that NaN is a violation.
    return [
        f"{name} {value:.3g} exceeds {limit:g}"
        for name, value, limit in checks
        if limit is not None and not value <= limit
    ]


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
    """Inputs of each call that reads a block through a cache: its first half at once, then token by token."""
    half = len(block) // 2
    for start, end in [(0, half), *((position, position + 1) for position in range(half, len(block)))]:
        yield {
            "input_ids": block[None, start:end],
            "attention_mask": np.ones((1, end), dtype=np.int64),
            "position_ids": np.arange(start, end, dtype=np.int64)[None],
        }


def compare(reference: Logits, candidate: Logits, blocks: Sequence[npt.NDArray[np.int64]]) -> Parity:
    """Measure how far `candidate` is from `reference`.

    Args:
        reference: logits of the trusted model on `blocks`.
        candidate: logits of the other.
        blocks: what both read; perplexity is taken on all but the random ones, of a classifier on the reference's
            answers.
    """
    absolute = [np.abs(left.astype(np.float64) - right) for left, right in zip(reference, candidate, strict=True)]
    kl = np.concatenate([_kl(left, right) for left, right in zip(reference, candidate, strict=True)])
    same = np.concatenate(
        [left.argmax(-1) == right.argmax(-1) for left, right in zip(reference, candidate, strict=True)]
    )
    text = len(blocks) - RANDOM_BLOCKS
    targets = [_targets(logits, block) for logits, block in zip(reference[:text], blocks[:text], strict=True)]
    return Parity(
        max_abs=float(max(item.max() for item in absolute)),
        mean_abs=float(np.mean([item.mean() for item in absolute])),
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        top1_agreement=float(same.mean()),
        perplexity=_perplexity(candidate[:text], targets),
        reference_perplexity=_perplexity(reference[:text], targets),
    )


def torch_logits(model: nn.Module, blocks: Sequence[npt.NDArray[np.int64]], *, head: Head = "language_model") -> Logits:
    """Logits of a torch model, whole blocks at once, without a cache."""
    import torch

    options: dict[str, Any] = {} if head == "classifier" else {"use_cache": False}
    with torch.inference_mode():
        outputs = [model(input_ids=torch.from_numpy(block)[None], **options).logits for block in blocks]
    # A decoder answers for every position, a classifier once.
    return [(logits[0] if logits.ndim == 3 else logits).float().numpy() for logits in outputs]


def rounding_of(
    model: Any, blocks: Sequence[npt.NDArray[np.int64]], logits: Logits, *, head: Head = "language_model"
) -> float:
    """The largest change of a logit when torch multiplies in float64 instead: how well the model determines its own
    logits.

    Normalisations that cast to float32 by themselves stay so.

    Args:
        model: float32; comes back as it was.
        blocks: inputs.
        logits: of the model in float32 on them.
        head: what the model is for.
    """
    try:
        exact = torch_logits(model.double(), blocks, head=head)
    finally:
        # Lossless: every value came from float32.
        model.float()
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
    targets: npt.NDArray[np.int64] = block[1:] if len(reference) == len(block) else reference.argmax(-1)
    return targets


def _perplexity(logits: Logits, targets: list[npt.NDArray[np.int64]]) -> float:
    losses = [
        -_log_softmax(each[: len(wanted)])[np.arange(len(wanted)), wanted]
        for each, wanted in zip(logits, targets, strict=True)
    ]
    return math.exp(float(np.concatenate(losses).mean()))
