"""One record of a user's data as a row: templates rendered, or a conversation written as the model reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shearling.errors import RecipeInvalid
from shearling.evaluation.task import TaskRow
from shearling.recipe.task import TaskSection
from shearling.strict_json import check_characters
from train.task.messages import read_messages, read_tools

if TYPE_CHECKING:
    from train.task.chat import ChatRenderer


ROW = "row"
"""In templates: the record itself, unless it has a field of this name."""
ROW_IS_A_FIELD = "One is named row: with another name for it, row[...] asks for any field"
ANY_NAME = 'A field whose name holds spaces or dashes is written {{ row["its name"] }}'


class RowRenderer:
    """The templates of one task, compiled.

    Args:
        task: the section.
        chat: the model's chat template; needed where rows are conversations.
        where: the section, for messages.

    Raises:
        RecipeInvalid: a template is none.
    """

    def __init__(self, task: TaskSection, chat: ChatRenderer | None = None, *, where: str = "task") -> None:
        from jinja2 import StrictUndefined, TemplateError
        from jinja2.sandbox import SandboxedEnvironment

        environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_nothing)
        self.task = task
        self.chat = chat
        self.where = where
        self.template_error = TemplateError
        sources = {
            "text": task.text,
            "prompt": task.prompt,
            "gold": task.gold,
            "completion": task.completion,
            "answer": task.answer,
        }
        self.templates = {}
        for name, source in sources.items():
            if source is not None:
                try:
                    self.templates[name] = environment.from_string(source)
                except TemplateError as error:
                    raise RecipeInvalid(
                        f"not a Jinja template: {error}", where=f"{self.where}.{name}", remedy=ANY_NAME
                    ) from None

    def __call__(self, record: Mapping[str, Any], number: int) -> tuple[TaskRow | None, bool]:
        """The row, or None where one of its parts renders to nothing; and whether all is learnt that could be.

        Raises:
            RecipeInvalid: a template does not render on this record.
            DocumentInvalid: its conversation is none, or half a character is among its texts.
        """
        if self.task.form == "chat":
            return self._conversation(record, number)
        rendered: dict[str, str] = {}
        for name in self.templates:
            # Later templates may use the text.
            made: dict[str, str] = {part: rendered[part] for part in ("text", "completion") if part in rendered}
            rendered[name] = self._render(name, record, made, number)
            if not rendered[name].strip():
                return None, True
        if self.task.form == "text":
            return self._row(prompt="", completion=rendered["text"], text=rendered["text"]), True
        choices, gold, completion = self.task.choices, None, rendered.get("completion", "")
        if choices is not None:
            gold = self._gold(rendered["gold"], number, len(choices))
            completion = choices[gold]
        row = self._row(
            prompt=rendered["prompt"],
            completion=completion,
            text=rendered["text"],
            choices=choices,
            gold=gold,
            answer=rendered.get("answer"),
        )
        return row, True

    def _conversation(self, record: Mapping[str, Any], number: int) -> tuple[TaskRow | None, bool]:
        if self.chat is None or self.task.messages is None:
            raise ValueError("conversations need the chat template of the model")
        messages = read_messages(record, self.task.messages, number)
        tools = read_tools(record, self.task.tools, number)
        for name, value in (("messages", messages), ("tools", tools)):
            check_characters(value, where=f"{self.where}.{name}, row {number}")
        chat = self.chat(messages, tools, where=f"{self.where}.messages, row {number}")
        if not chat.completion.strip():
            return None, True
        made = {"completion": chat.completion.strip()}
        text = "\n".join(message["content"] for message in messages if message["content"])
        rendered = {name: self._render(name, record, made, number) for name in self.templates}
        if not all(part.strip() for part in (text, *rendered.values())):
            return None, True
        row = self._row(
            prompt=chat.prompt,
            completion=chat.completion,
            text=rendered.get("text", text),
            answer=rendered.get("answer"),
            tail=chat.tail,
            learnt=chat.learnt,
        )
        return row, chat.whole

    def _row(self, *, prompt: str, completion: str, text: str, answer: str | None = None, **others: Any) -> TaskRow:
        # A text alone has no prompt that could tell it from another.
        content = prompt if self.task.form != "text" else text
        return TaskRow(
            id=hashlib.sha256(content.encode()).hexdigest(),
            prompt=prompt,
            completion=completion,
            text=text,
            answer=None if answer is None else answer.strip(),
            **{"choices": None, "gold": None, **others},
        )

    def _render(self, name: str, record: Mapping[str, Any], made: Mapping[str, str], number: int) -> str:
        """A template on the fields of a record, and on what has been made of them."""
        fields = {**record, **made}
        try:
            rendered = str(self.templates[name].render({ROW: record, **fields}))
        except Exception as error:  # a template is code of the user's, and may raise anything
            said = str(error) if isinstance(error, self.template_error) else f"{type(error).__name__}: {error}"
            remedy = f"The row has: {', '.join(fields)}"
            if not all(field.isidentifier() for field in fields):
                remedy += f". {ROW_IS_A_FIELD if ROW in record else ANY_NAME}"
            raise RecipeInvalid(f"row {number}: {said}", where=f"{self.where}.{name}", remedy=remedy) from None
        check_characters(rendered, where=f"{self.where}.{name}, row {number}")
        return rendered

    def _gold(self, rendered: str, number: int, count: int) -> int:
        text = rendered.strip()
        if not text.isdecimal() or int(text) >= count:
            raise RecipeInvalid(
                f"row {number} renders to {text!r}, expected an index 0..{count - 1} into choices",
                where=f"{self.where}.gold",
                remedy='Of labels that are words, give the place of theirs: \'{{ ["no", "yes"].index(label) }}\'',
            )
        return int(text)


def _nothing(value: Any) -> Any:
    """A field that is null is empty, not the word None."""
    return "" if value is None else value
