"""How much of a right answer stands in a generated one: what lm-evaluation-harness computes in tasks of its own, for
any task.

The harness's table of metrics has exact match alone. Its task CoQA counts words with transformers' script of SQuAD, and
TruthfulQA with `rouge_score`; both are used here. Task files name these functions, so that the harness calls them.

SQuAD's words end at white space, and `rouge_score` sees none but those of a to z and digits. Here words are of any
script, and where a script puts no space between them, each character counts as one. Of English, results are the same.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

UNSPACED = re.compile(
    "(["
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "])"
)
"""A character of a script that is written without spaces between words."""
EAST_ASIAN_PUNCTUATION = re.compile("[\u3000-\u3004\u3008-\u3020\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff65]")
LETTERS_MARKS_NUMBERS = "LMN"


def f1(references: Sequence[str], predictions: Sequence[str], *, regexes_to_ignore: Sequence[str] = ()) -> float:
    """Harmonic mean of precision and recall of the words, without case, punctuation and articles (SQuAD).

    Scripts without spaces are counted as MLQA counts Chinese: by characters, without their own punctuation.

    Args:
        references: the right answer, alone.
        predictions: the generated one, alone.
        regexes_to_ignore: what is removed from both.

    Returns:
        0 to 1.
    """
    from transformers.data.metrics.squad_metrics import compute_f1

    right, given = (
        _spaced(EAST_ASIAN_PUNCTUATION.sub(" ", text)) for text in _pair(references, predictions, regexes_to_ignore)
    )
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

    return RougeScorer([name], tokenizer=_Words())


class _Words:
    """A tokenizer of `rouge_score`."""

    def tokenize(self, text: str) -> list[str]:
        """Letters, with their marks, and numbers of any script, in lower case."""
        kept = (
            character if unicodedata.category(character)[0] in LETTERS_MARKS_NUMBERS else " "
            for character in unicodedata.normalize("NFC", text.lower())
        )
        return _spaced("".join(kept)).split()


def _spaced(text: str) -> str:
    return UNSPACED.sub(r" \1 ", text)


def _pair(references: Sequence[str], predictions: Sequence[str], ignored: Sequence[str]) -> tuple[str, str]:
    texts = [references[0], predictions[0]]
    for pattern in ignored:
        texts = [re.sub(pattern, "", text) for text in texts]
    return texts[0], texts[1]
