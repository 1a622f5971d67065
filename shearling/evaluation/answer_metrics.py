"""How much of a right answer stands in a generated one: what lm-evaluation-harness computes in tasks of its own, for
any task.

The harness's table of metrics has exact match alone. Its task CoQA counts words with transformers' script of SQuAD, and
TruthfulQA with `rouge_score`; both are used here. Task files name these functions, so that the harness calls them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any


def f1(references: Sequence[str], predictions: Sequence[str], *, regexes_to_ignore: Sequence[str] = ()) -> float:
    """Harmonic mean of precision and recall of the words, without case, punctuation and articles (SQuAD).

    Args:
        references: the right answer, alone.
        predictions: the generated one, alone.
        regexes_to_ignore: what is removed from both.

    Returns:
        0 to 1.
    """
    from transformers.data.metrics.squad_metrics import compute_f1

    right, given = _pair(references, predictions, regexes_to_ignore)
    return float(compute_f1(right, given))


def rouge1(references: Sequence[str], predictions: Sequence[str], *, regexes_to_ignore: Sequence[str] = ()) -> float:
    """F-measure of the words; arguments as for `f1`."""
    return _rouge("rouge1", references, predictions, regexes_to_ignore)


def rouge2(references: Sequence[str], predictions: Sequence[str], *, regexes_to_ignore: Sequence[str] = ()) -> float:
    """F-measure of the pairs of neighbouring words; arguments as for `f1`."""
    return _rouge("rouge2", references, predictions, regexes_to_ignore)


def rougeL(references: Sequence[str], predictions: Sequence[str], *, regexes_to_ignore: Sequence[str] = ()) -> float:  # noqa: N802 (as the field writes it)
    """F-measure of the longest common subsequence of words; arguments as for `f1`."""
    return _rouge("rougeL", references, predictions, regexes_to_ignore)


def _rouge(name: str, references: Sequence[str], predictions: Sequence[str], regexes_to_ignore: Sequence[str]) -> float:
    right, given = _pair(references, predictions, regexes_to_ignore)
    return float(_scorer(name).score(right, given)[name].fmeasure)


@functools.cache
def _scorer(name: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([name])


def _pair(references: Sequence[str], predictions: Sequence[str], ignored: Sequence[str]) -> tuple[str, str]:
    texts = [references[0], predictions[0]]
    for pattern in ignored:
        texts = [re.sub(pattern, "", text) for text in texts]
    return texts[0], texts[1]
