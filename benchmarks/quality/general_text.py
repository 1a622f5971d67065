"""General text, held back from training and from pruning, and the bits per byte that a model needs for it.

It is the beginning of a thousand passages of Wikipedia that the wheel of the tasks holds for another purpose, so that
it is pinned with them. Lists and coordinates, which are short, are left out. The other passages are there to calibrate
on:

    python -m benchmarks.quality.general_text --output general.jsonl
    python -m export ... --weight-format int4 --quantization best --dataset task,general.jsonl
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.command import command
from benchmarks.quality.tasks import registry_asset
from shearling.console import log
from shearling.recipe.section import PackageAsset
from train.package_asset import fetch

if TYPE_CHECKING:
    from shearling.evaluation.causal_scorer import CausalScorer

MEMBER = "schelling_point/wikipedia_5.jsonl"
ORIGINAL = "0"
"""Of five orders of a passage's sentences the one that was written; the others are shuffled."""

GENERAL_BYTES = 65_536
SHORTEST_PASSAGE = 200


@dataclass(frozen=True)
class GeneralText:
    """Passages, each scored from its first token on."""

    passages: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Of all passages in UTF-8."""
        return sum(len(passage.encode()) for passage in self.passages)

    @property
    def sha256(self) -> str:
        """Of all passages: equal digests mean the same text."""
        return hashlib.sha256("\0".join(self.passages).encode()).hexdigest()


@functools.cache
def held_back_text() -> GeneralText:
    """The first passages that make `GENERAL_BYTES`, fetched where they are not cached.

    Raises:
        ShearlingError: see `train.package_asset.fetch`.
    """
    return GeneralText(_split()[0])


def other_passages() -> tuple[str, ...]:
    """The passages behind those that are held back, fetched where they are not cached.

    Raises:
        ShearlingError: see `train.package_asset.fetch`.
    """
    return _split()[1]


def _split() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Passages that are held back, and the others."""
    path = fetch(PackageAsset.model_validate(registry_asset(MEMBER)))
    held_back: list[str] = []
    others: list[str] = []
    total = 0
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            record: Mapping[str, str] = json.loads(line)
            passage = record[ORIGINAL].strip()
            if len(passage) < SHORTEST_PASSAGE:
                continue
            (held_back if total < GENERAL_BYTES else others).append(passage)
            total += len(passage.encode())
    return tuple(held_back), tuple(others)


def bits_per_byte(scorer: CausalScorer, text: GeneralText) -> float:
    """Bits that a model needs for a byte of text.

        - sum over passages of log2 p(passage) / bytes of all passages

    Args:
        scorer: of the model.
        text: at least one passage.

    Raises:
        NonFiniteWeights: the model gives NaN.
    """
    from lm_eval.api.instance import Instance

    requests: list[Any] = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(passage,), idx=index)
        for index, passage in enumerate(text.passages)
    ]
    nats = -math.fsum(scorer.loglikelihood_rolling(requests))
    return nats / math.log(2) / text.size_bytes


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Write the passages that are not held back, a key `text` a line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.general_text", description=main.__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the file, such as general.jsonl")
    options = parser.parse_args(arguments)
    log.print(f"{write_other_passages(options.output)} passages: {options.output}")
    return 0


def write_other_passages(path: Path) -> int:
    """Write them, a key `text` a line; gives their number."""
    lines = [json.dumps({"text": passage}, ensure_ascii=False) for passage in other_passages()]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)


if __name__ == "__main__":
    sys.exit(main())
