"""[task]: data, and how a model is asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from shearling.recipe.section import PackageAsset, Section


class HubDataset(Section):
    """A data set that the `datasets` library can load: a local directory, or a name in its cache."""

    name: str
    config: str | None = None
    split: str = "train"


class SplitShares(Section):
    """Shares of the data, assigned by the hash of the content."""

    train: float = pydantic.Field(0.8, gt=0, lt=1)
    validation: float = pydantic.Field(0.1, gt=0, lt=1)
    test: float = pydantic.Field(0.1, gt=0, lt=1)

    @pydantic.model_validator(mode="after")
    def _sum(self) -> SplitShares:
        if abs(self.train + self.validation + self.test - 1) > 1e-9:
            raise ValueError("the shares must add up to 1")
        return self


class RowLimits(Section):
    """At most so many rows of each split; absent: all of them."""

    train: int | None = pydantic.Field(None, ge=1)
    validation: int | None = pydantic.Field(None, ge=1)
    test: int | None = pydantic.Field(None, ge=1)


class TaskSection(Section):
    """The data, and the templates (Jinja) that turn one of its rows into what the model reads.

    Attributes:
        text: the raw text of a row; bits per byte are measured on it.
        prompt: may use the row's fields, and `text`.
        choices: the answers of a multiple-choice task, each with its leading space.
        gold: renders to the index of the right choice.
        completion: what a generative task learns after the prompt.
        answer: what is right, of a task whose accuracy is that of generated text; the other keys about answers and
            generation belong to it.
    """

    name: str = pydantic.Field(pattern="^[a-z0-9_]+$")
    path: Path | None = pydantic.Field(None, description="JSONL, relative to the recipe")
    asset: PackageAsset | None = None
    dataset: HubDataset | None = None
    text: str
    prompt: str
    choices: tuple[str, ...] | None = pydantic.Field(None, min_length=2)
    gold: str | None = None
    completion: str | None = None
    answer: str | None = None
    answer_pattern: str | None = pydantic.Field(
        None, description="regular expression that finds the answer in generated text; absent: the whole text"
    )
    answer_match: Literal["first", "last"] = pydantic.Field("last", description="which of several matches counts")
    answer_ignore: tuple[str, ...] = pydantic.Field(
        (), description="regular expressions of what is removed from both answers before they are compared"
    )
    max_new_tokens: int = pydantic.Field(256, ge=1, description="most tokens of a generated text")
    stop: tuple[Annotated[str, pydantic.Field(min_length=1)], ...] = pydantic.Field(
        (), description="strings that end the generated text, beside the end-of-text token"
    )
    split: SplitShares = SplitShares()
    rows: RowLimits = RowLimits()
    max_length: int = pydantic.Field(256, ge=8, description="tokens of a training row; longer ones are cut")
    train_on_prompt: bool = pydantic.Field(True, description="the loss covers the prompt as well (as in the papers)")
    train_on_end: bool = pydantic.Field(
        True,
        description="the end-of-text token behind the answer is learnt; a multiple-choice task without generation is "
        "better without",
    )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> TaskSection:
        if sum(source is not None for source in (self.path, self.asset, self.dataset)) != 1:
            raise ValueError("give exactly one of 'path', 'asset' and 'dataset'")
        if (self.choices is None) != (self.gold is None):
            raise ValueError("'choices' and 'gold' belong together")
        if (self.choices is None) == (self.completion is None):
            raise ValueError("give either 'choices' with 'gold', or 'completion'")
        return self

    @pydantic.model_validator(mode="after")
    def _generation(self) -> TaskSection:
        if self.answer is not None and self.completion is None:
            raise ValueError("'answer' belongs to a task with 'completion': of 'choices' the likeliest is the answer")
        given = self.model_fields_set & {"answer_pattern", "answer_match", "answer_ignore", "max_new_tokens", "stop"}
        if self.answer is None and any(
            getattr(self, name) != type(self).model_fields[name].default for name in sorted(given)
        ):
            raise ValueError(f"{', '.join(sorted(given))}: these belong to 'answer', what is right of a row")
        for name, patterns in (("answer_pattern", (self.answer_pattern,)), ("answer_ignore", self.answer_ignore)):
            for pattern in patterns:
                try:
                    re.compile(pattern or "")
                except re.error as error:
                    raise ValueError(f"{name}: {pattern!r} is no regular expression: {error}") from None
        return self
