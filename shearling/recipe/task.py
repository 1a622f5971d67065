"""[task]: data, and how a model is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic

from shearling.recipe.section import PackageAsset, Section


class HubDataset(Section):
    """A data set that the `datasets` library can load: a local directory, or a name in its cache.

    Attributes:
        name: a path where it is a directory beside the recipe.
    """

    name: Annotated[str | Path, pydantic.WithJsonSchema({"type": "string"})] = pydantic.Field(
        description="a directory, relative to the recipe, or a name in the cache of `datasets`"
    )
    config: str | None = None
    split: str = "train"

    @pydantic.field_serializer("name")
    def _without_directory(self, name: str | Path) -> str:
        # Runs and recipes move; with the dot nobody takes it for a name of the hub.
        return f"./{name.name}" if isinstance(name, Path) else name


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


AnswerMetric = Literal["exact_match", "f1", "rouge1", "rouge2", "rougeL"]
Form = Literal["choices", "completion", "chat", "text"]


def _is_generated(task: Mapping[str, Any]) -> bool:
    return task.get("choices") is None


class TaskSection(Section):
    """The data, and the templates (Jinja) that turn one of its rows into what the model reads.

    A row is a question with choices, a prompt with its completion, a conversation, or a text alone.

    Attributes:
        text: the raw text of a row; bits per byte are measured on it. Alone it is all that is learnt.
        prompt: may use the row's fields, and `text`.
        choices: the answers of a multiple-choice task, each with its leading space.
        gold: renders to the index of the right choice.
        completion: what a generative task learns after the prompt.
        messages: the field of a row that holds a conversation; what the assistant says is learnt.
        answer: what is right, of a task whose accuracy is that of generated text; the other keys about answers and
            generation belong to it. Beside a row's fields it may use `completion`.
        weight: of its rows in a run with several tasks.
    """

    papers: ClassVar[Mapping[str, Any]] = {"train_on_prompt": True, "train_on_end": True}

    name: str = pydantic.Field(pattern="^[a-z0-9_]+$")
    path: Path | None = pydantic.Field(
        None,
        description="JSONL, JSON, CSV or Parquet, a directory of such files, or what save_to_disk of `datasets` wrote; "
        "relative to the recipe",
    )
    asset: PackageAsset | None = None
    dataset: HubDataset | None = None
    text: str | None = pydantic.Field(None, description="template: the raw text of a row; alone it is what is learnt")
    prompt: str | None = None
    choices: tuple[str, ...] | None = pydantic.Field(None, min_length=2)
    gold: str | None = None
    completion: str | None = None
    messages: str | None = pydantic.Field(
        None,
        min_length=1,
        description="the field that holds a conversation, with 'role' and 'content' or with 'from' and 'value'",
    )
    tools: str = pydantic.Field("tools", description="the field with a conversation's tools, where a row has it")
    answer: str | None = None
    answer_pattern: str | None = pydantic.Field(
        None, description="regular expression that finds the answer in generated text; absent: the whole text"
    )
    answer_match: Literal["first", "last"] = pydantic.Field("last", description="which of several matches counts")
    answer_ignore: tuple[str, ...] = pydantic.Field(
        (), description="regular expressions of what is removed from both answers before they are compared"
    )
    answer_metric: AnswerMetric = pydantic.Field(
        "exact_match", description="how a generated answer is scored; f1 and rouge count the words that agree"
    )
    max_new_tokens: int = pydantic.Field(256, ge=1, description="most tokens of a generated text")
    stop: tuple[Annotated[str, pydantic.Field(min_length=1)], ...] = pydantic.Field(
        (), description="strings that end the generated text, beside the end-of-text token"
    )
    split: SplitShares = SplitShares()
    rows: RowLimits = RowLimits()
    weight: float = pydantic.Field(
        1.0, gt=0, description="of its rows among those that are learnt, beside the tasks of [[data]]"
    )
    max_length: int = pydantic.Field(
        256, ge=8, description="tokens of a training row; longer ones are cut, and a text alone is cut into several"
    )
    train_on_prompt: bool = pydantic.Field(False, description="the loss covers the prompt as well (as in the papers)")
    train_on_end: bool = pydantic.Field(
        default_factory=_is_generated,
        description="the end-of-text token behind the answer is learnt; absent: not with 'choices', where it would be "
        "half of what is learnt and nothing is generated; how a turn of a conversation ends is always learnt",
    )

    @property
    def form(self) -> Form:
        """What a row is."""
        if self.messages is not None:
            return "chat"
        if self.choices is not None:
            return "choices"
        return "text" if self.completion is None else "completion"

    @property
    def leaves_tokens_unlabelled(self) -> bool:
        """Whether a row has tokens that no label is learnt at: those of a prompt."""
        return self.form != "text" and not self.train_on_prompt

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> TaskSection:
        if sum(source is not None for source in (self.path, self.asset, self.dataset)) != 1:
            raise ValueError("give exactly one of 'path', 'asset' and 'dataset'")
        if (self.choices is None) != (self.gold is None):
            raise ValueError("'choices' and 'gold' belong together")
        if self.choices is not None and "" in self.choices:
            raise ValueError("a choice is empty: no token of it could be scored")
        if self.choices is not None and len(set(self.choices)) < len(self.choices):
            twice = next(choice for choice in self.choices if self.choices.count(choice) > 1)
            raise ValueError(f"the choice {twice!r} is there twice: no answer could tell one from the other")
        if self.choices is not None and self.completion is not None:
            raise ValueError("give either 'choices' with 'gold', or 'completion'")
        if self.form in ("choices", "completion"):
            for name in ("text", "prompt"):
                if getattr(self, name) is None:
                    raise ValueError(f"'{name}' is missing: a row with {self.form} has a text and a prompt")
        return self

    @pydantic.model_validator(mode="after")
    def _other_forms(self) -> TaskSection:
        if self.messages is not None:
            given = [name for name in ("prompt", "choices", "completion") if getattr(self, name) is not None]
            if given:
                raise ValueError(f"'messages' holds a whole conversation: leave out {', '.join(given)}")
        elif self.form == "text":
            if self.prompt is not None:
                raise ValueError("a prompt needs an answer: give either 'choices' with 'gold', or 'completion'")
            if self.text is None:
                raise ValueError("give 'messages', or 'text' with 'prompt' and an answer, or 'text' alone")
        elif self.tools != "tools":
            raise ValueError("'tools' belongs to 'messages'")
        return self

    @pydantic.model_validator(mode="after")
    def _generation(self) -> TaskSection:
        if self.answer is not None and self.form in ("choices", "text"):
            raise ValueError(
                "'answer' belongs to a task with 'completion' or 'messages': of 'choices' the likeliest is the answer"
            )
        given = self.model_fields_set & {
            "answer_pattern",
            "answer_match",
            "answer_ignore",
            "answer_metric",
            "max_new_tokens",
            "stop",
        }
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
