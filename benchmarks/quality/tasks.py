"""The tasks of the benchmark: three of different kind from one pinned wheel, split by content like every task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.quality.models import shipped_recipe
from shearling.model.head import Head
from shearling.recipe.task import TaskSection

ROWS: Mapping[str, int] = {"train": 1600, "validation": 400, "test": 1000}


@dataclass(frozen=True)
class BenchmarkTask:
    """Data, and how a model is asked.

    Attributes:
        name: on the command line, and of the task.
        title: in tables.
        source: `asset` or `path` of [task].
        text: of a row, as a template; all that an encoder reads.
        prompt: what a language model reads, as a template.
        answers: `choices` with `gold`, or `completion`.
        max_length: tokens of a training row.
        rows: of each split.
        split: shares of the data; absent: [task.split]'s own.
    """

    name: str
    title: str
    source: Mapping[str, Any]
    text: str
    prompt: str
    answers: Mapping[str, Any]
    max_length: int
    rows: Mapping[str, int] = field(default_factory=lambda: ROWS)
    split: Mapping[str, float] = field(default_factory=dict)

    def suits(self, head: Head) -> bool:
        """Whether a model can be asked; an encoder has classes alone."""
        return head == "language_model" or "choices" in self.answers

    def section(self, head: Head) -> dict[str, Any]:
        """[task] of a recipe."""
        return {
            "name": self.name,
            **self.source,
            "text": self.text,
            "prompt": self.prompt if head == "language_model" else "{{ text }}",
            **self.answers,
            "max_length": self.max_length,
            **(_answer_alone() if head == "language_model" else {}),
            "rows": dict(self.rows),
            **({"split": dict(self.split)} if self.split else {}),
        }


def _answer_alone() -> dict[str, bool]:
    # The end of the text behind a short answer is half of what would be learnt, and every row has the same.
    return {name: False for name in ("train_on_prompt", "train_on_end") if name in TaskSection.model_fields}


def registry_asset(member: str) -> dict[str, Any]:
    """A file of the registry of the wheel that the shipped recipes pin.

    Args:
        member: below the registry's data.
    """
    pinned: Mapping[str, Any] = shipped_recipe("smollm2-shears")["task"]["asset"]
    return {**pinned, "member": f"evals/registry/data/{member}"}


def sarcasm() -> BenchmarkTask:
    """Headlines, sarcastic or not: two choices, meaning."""
    return BenchmarkTask(
        name="sarcasm",
        title="headlines, 2 choices",
        source={"asset": registry_asset("sarcasm/samples.jsonl")},
        text="{{ input[1].content }}",
        prompt="Headline: {{ text }}\nSarcastic:",
        answers={"choices": [" no", " yes"], "gold": "{{ ideal }}"},
        max_length=96,
    )


def stories() -> BenchmarkTask:
    """Where somebody thinks that a thing is, in a short story: generated, right where it is the same to the letter."""
    return BenchmarkTask(
        name="stories",
        title="stories, exact match",
        source={"asset": registry_asset("theory_of_mind/tomi/test.jsonl")},
        text="{{ input[0].content }}",
        prompt="{{ text }}\nAnswer:",
        answers={"completion": " {{ ideal | replace('_', ' ') }}"},
        max_length=128,
        split={"train": 0.6, "validation": 0.15, "test": 0.25},
    )


def poker() -> BenchmarkTask:
    """The best hand among seven cards: eight choices, a rule to be found.

    A hand is answered by a word that is one token, so that a row is read once for all choices.
    """
    words = {
        "High card": "high",
        "One pair": "pair",
        "Two pair": "two",
        "Three of a kind": "three",
        "Straight": "straight",
        "Flush": "flush",
        "Full house": "full",
        "Four of a kind": "four",
    }
    return BenchmarkTask(
        name="poker",
        title="poker hands, 8 choices",
        source={"asset": registry_asset("poker_hand_ranks/full_samples.jsonl")},
        # A row's question begins with "Q: ", and the first of its right answers with "A: ".
        text="{{ input[-1].content[3:] }}",
        prompt="{{ text }}\nRank:",
        answers={
            "choices": [f" {word}" for word in words.values()],
            "gold": f"{{{{ {tuple(words)}.index(ideal[0][3:]) }}}}",
        },
        max_length=96,
        split={"train": 0.5, "validation": 0.13, "test": 0.37},
    )


TASKS: Mapping[str, Callable[[], BenchmarkTask]] = {task.__name__: task for task in (sarcasm, poker, stories)}
