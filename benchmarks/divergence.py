"""How far files are from the model that they were made of, on general text: KL, and how often the most likely token is
the same.

    python -m benchmarks.divergence runs/demo/export/model sparse-int4 peers/llama/Q4_0.gguf@environment=peers/llama

The first is the reference, in float32; the others are held against it, each in its runtime as users get it. Of an
export with several formats, `@format=` picks one; the table says which was read. The text is the Wikipedia of
`benchmarks.quality`, which nothing was trained or calibrated on. A file of another model than the reference needs a run
of its own: what counts is how far each is from its own origin. The table goes to stdout as Markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.command import command
from benchmarks.quality.general_text import held_back_text
from export.verification.parity import Logits, Parity, compare
from shearling.console import progress
from shearling.errors import UsageError
from shearling.evaluation.causal_scorer import CausalScorer
from shearling.evaluation.given_model import GivenModel, find_given_model
from shearling.target import parse_target

WINDOWS, WINDOW_TOKENS, ROWS = 24, 128, 4
"""3,072 positions, four windows in a call."""


def cut_windows(tokenizer: Any, texts: Sequence[str], *, windows: int, tokens: int) -> list[torch.Tensor]:
    """Windows [tokens] int64, one behind the other, of texts behind each other.

    Raises:
        UsageError: the texts have too few tokens.
    """
    ids = [token for text in texts for token in tokenizer(text)["input_ids"]]
    if len(ids) < windows * tokens:
        raise UsageError(f"{len(ids)} tokens of text, {windows} windows of {tokens} are wanted")
    return list(torch.tensor(ids[: windows * tokens]).view(windows, tokens))


def read_windows(scorer: CausalScorer, windows: Sequence[torch.Tensor], *, title: str) -> Logits:
    """Logits [tokens, vocabulary] of every window."""
    logits: Logits = []
    with progress(title, total=-(-len(windows) // ROWS)) as advance:
        for start in range(0, len(windows), ROWS):
            batch = torch.stack(list(windows[start : start + ROWS]))
            logits += list(scorer.logits(batch, 0).numpy().astype(np.float32))
            advance()
    return logits


def measure(reference: GivenModel, candidates: Sequence[GivenModel]) -> list[Parity]:
    """Hold every candidate against the reference.

    Raises:
        UsageError: a candidate reads other tokens than the reference.
        ShearlingError: a model does not load.
    """
    with reference.load("fp32") as model:
        scorer = model.scorer()
        windows = cut_windows(scorer.tokenizer, held_back_text().passages, windows=WINDOWS, tokens=WINDOW_TOKENS)
        wanted = read_windows(scorer, windows, title=reference.target.label)
    blocks = [window.numpy() for window in windows]
    found = []
    for candidate in candidates:
        with candidate.load("fp32") as model:
            scorer = model.scorer()
            own = cut_windows(scorer.tokenizer, held_back_text().passages, windows=WINDOWS, tokens=WINDOW_TOKENS)
            if any(not torch.equal(left, right) for left, right in zip(own, windows, strict=True)):
                raise UsageError("it reads other tokens than the reference", where=candidate.target.label)
            logits = read_windows(scorer, windows, title=candidate.target.label)
        found.append(compare(wanted, logits, blocks, random_blocks=0))
    return found


def as_table(models: Sequence[GivenModel], found: Sequence[Parity]) -> str:
    """Markdown."""
    lines = ["| file | as | mean KL, nats | same most likely token | perplexity, times |", "|---|---|---:|---:|---:|"]
    for model, parity in zip(models, found, strict=True):
        name, ratio = f"{model.target.label} | {model.format}", parity.perplexity / parity.reference_perplexity
        lines.append(f"| {name} | {parity.kl_mean:.4f} | {parity.top1_agreement:.1%} | {ratio:.3f} |")
    return "".join(f"{line}\n" for line in lines)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Hold files against their origin."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.divergence", description=main.__doc__)
    parser.add_argument("reference", help="a torch model directory")
    parser.add_argument("candidates", nargs="+", help="as for shearling evaluate")
    options = parser.parse_args(arguments)
    reference, *candidates = [find_given_model(parse_target(text)) for text in (options.reference, *options.candidates)]
    found = measure(reference, candidates)
    sys.stdout.write(as_table(candidates, found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
