"""The texts that files are read on, and what the merged model says of them.

Files of floating-point numbers read the fixed blocks. What rounds weights to integers is judged on text that nothing
was trained or calibrated on, where there is any: the validation rows of the run, over two thousand positions of a
decoder, which reach beyond five hundred tokens; of a classifier its answers to some rows.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from export.verification.parity import RANDOM_BLOCKS, Logits, LogitsInTurn, torch_logits
from shearling.evaluation.task import CALIBRATION_CHARACTERS, has_rows, read_rows
from shearling.model.context_length import stated_length
from shearling.model.head import Head

if TYPE_CHECKING:
    from torch import nn

WINDOWS, WINDOW_TOKENS = 4, 520
"""Of held-back text: 2,080 positions."""
SHORTEST_WINDOW = 16
CHARACTERS = 3
"""Of a token, or more, in most languages and vocabularies."""
ANSWERED_ROWS = 128
"""That a classifier answers."""

FIXED_TEXT, HELD_BACK_TEXT = "fixed text", "validation rows"


@dataclass(frozen=True)
class Reading:
    """Blocks of tokens, and the merged model's logits on them.

    Attributes:
        name: as a report says it.
        blocks: [tokens] int64 each.
        logits: of the model in float32.
        random_blocks: of random tokens, at the end.
    """

    name: str
    blocks: Sequence[npt.NDArray[np.int64]]
    logits: Logits
    random_blocks: int


@dataclass(frozen=True)
class MeasuredLogits:
    """What a written file computes on a reading.

    Attributes:
        candidate: what it is called in the report: the format, and what is special.
        precision: name of the number format whose gate applies.
        logits: one array for each block, or for the first of them: [tokens, vocabulary], of the first tokens, or
            [1, classes].
        chosen_by_runtime: the arithmetic is coarser than the file, because the runtime takes it by default here.
    """

    candidate: str
    precision: str
    logits: LogitsInTurn
    chosen_by_runtime: bool = False


def read_fixed(model: nn.Module, blocks: Sequence[npt.NDArray[np.int64]], *, head: Head) -> Reading:
    """The fixed blocks, read by the model."""
    return Reading(FIXED_TEXT, blocks, torch_logits(model, blocks, head=head), RANDOM_BLOCKS)


def read_held_back(model: Any, tokenizer: Any, task: Path, *, head: Head) -> Reading | None:
    """Validation rows, read by the model; None where there are none, or too few for a window.

    Args:
        model: eval mode; computes in float32.
        tokenizer: of the model.
        task: a `task` artefact, which need not exist.
        head: what the model is for.

    Raises:
        ArtefactMissing: the task lists validation rows that are not there.
    """
    if not has_rows(task, "validation"):
        return None
    rows = read_rows(task, "validation", most_characters=CALIBRATION_CHARACTERS)
    positions = stated_length(model.config.to_dict()) or WINDOW_TOKENS
    if head == "classifier":
        prompts = [row.prompt for row in rows[:ANSWERED_ROWS]]
        # Whoever is asked to truncate goes on to, and would be saved so.
        tokenizer = copy.deepcopy(tokenizer)
        texts = [tokenizer(prompt, truncation=True, max_length=positions)["input_ids"] for prompt in prompts]
        blocks = [np.array(ids, dtype=np.int64) for ids in texts if ids]
    else:
        stream = _stream([row.prompt + row.completion for row in rows], tokenizer, WINDOWS * WINDOW_TOKENS)
        length = min(WINDOW_TOKENS, positions, len(stream))
        starts = range(0, len(stream) - length + 1, length) if length >= SHORTEST_WINDOW else range(0)
        blocks = [stream[start : start + length] for start in starts][:WINDOWS]
    return Reading(HELD_BACK_TEXT, blocks, torch_logits(model, blocks, head=head), 0) if blocks else None


def held_back_positions(task: Path) -> int:
    """How many positions `read_held_back` will have a decoder read, before there is a tokenizer to count them.

    Args:
        task: a `task` artefact, which need not exist.

    Raises:
        ArtefactMissing: see `read_held_back`.
    """
    if not has_rows(task, "validation"):
        return 0
    rows = read_rows(task, "validation", most_characters=CALIBRATION_CHARACTERS)
    tokens = sum(len(row.prompt) + len(row.completion) for row in rows) // CHARACTERS
    return min(tokens, WINDOW_TOKENS) * max(1, min(WINDOWS, tokens // WINDOW_TOKENS))


def _stream(texts: Sequence[str], tokenizer: Any, tokens: int) -> npt.NDArray[np.int64]:
    """Tokens of all texts behind each other, as many as are wanted."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids: list[int] = []
    for text in texts:
        ids += [*tokenizer(text)["input_ids"], *end]
        if len(ids) >= tokens:
            break
    return np.array(ids[:tokens], dtype=np.int64)
