"""Conversations as people store them, in the one form that chat templates take.

OpenAI's messages have a role and content, in parts or not, with tool calls and tools beside them; those of ShareGPT say
whom they are from, and a value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shearling.errors import DocumentInvalid

Message = dict[str, Any]

ROLES: Mapping[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
"""What the roles are called, and what templates call them."""

ASKING = ("user", "system", "tool")
"""Whose first turn begins a conversation: of the first role that takes part in it."""

FORMS = (
    "A conversation is a list of {'role': ..., 'content': ...} or {'from': ..., 'value': ...}, with a turn of the "
    "assistant"
)


def read_messages(record: Mapping[str, Any], field: str, number: int) -> list[Message]:
    """The conversation of a row, up to the assistant's last turn: nothing is learnt behind it. What the assistant says
    before the user does is left out: nobody had asked, and many templates refuse it. Where there is no user, a system
    message asks.

    Args:
        record: the row.
        field: with the conversation, a list or its JSON.
        number: of the row, counted from 1.

    Raises:
        DocumentInvalid: there is no such field, or what it holds is no conversation; names row and message.
    """
    where = f"row {number}, {field}"
    if field not in record:
        raise DocumentInvalid(
            f"no such field: the row has {', '.join(record)}", where=where, remedy="Name another with task.messages"
        )
    found = _parsed(record[field], where)
    if not isinstance(found, list) or not found:
        raise DocumentInvalid(f"expected a list of messages, found {_named(found)}", where=where, remedy=FORMS)
    messages = [_message(item, f"{where}, message {place}") for place, item in enumerate(found, start=1)]
    said = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    talk = messages[: said[-1] + 1] if said else []
    asking = (place for role in ASKING for place, message in enumerate(talk) if message["role"] == role)
    asked = next(asking, None)
    if asked is None:
        raise DocumentInvalid(
            f"the assistant {'answers nobody' if said else 'says nothing'}, so there is nothing to learn",
            where=where,
            remedy="Leave such rows out of the data",
        )
    return [*(message for message in talk[:asked] if message["role"] == "system"), *talk[asked:]]


def read_tools(record: Mapping[str, Any], field: str, number: int) -> list[dict[str, Any]] | None:
    """The tools that a row offers, as JSON schemas; None where it has none.

    Raises:
        DocumentInvalid: the field holds something else.
    """
    where = f"row {number}, {field}"
    found = _parsed(record.get(field) or None, where)
    if not found:
        return None
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise DocumentInvalid(
            f"expected a list of tools, found {_named(found)}",
            where=where,
            remedy="Give JSON schemas as in OpenAI's API, or name another field with task.tools",
        )
    return [_without_nulls(tool) for tool in found]


def _parsed(value: Any, where: str) -> Any:
    """A table of texts has its lists as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        said = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DocumentInvalid(f"malformed JSON: {said}", where=where, remedy=FORMS) from None


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise DocumentInvalid(f"expected a message, found {_named(item)}", where=where, remedy=FORMS)
    message = _without_nulls(item)
    names = ("from", "value") if "from" in message and "role" not in message else ("role", "content")
    role = message.pop(names[0], None)
    if not isinstance(role, str) or role not in ROLES:
        raise DocumentInvalid(
            f"unknown role {role!r}" if role is not None else "no role",
            where=where,
            remedy=f"Roles are: {', '.join(ROLES)}",
        )
    content = _text(message.pop(names[1], None), where)
    calls = message.pop("tool_calls", None)
    if content is None and not calls:
        raise DocumentInvalid(f"no {names[1]}", where=where, remedy=FORMS)
    read = {"role": ROLES[role], "content": content or "", **message}
    if calls and not isinstance(calls, list):
        raise DocumentInvalid(f"expected a list of calls, found {_named(calls)}", where=where, remedy=FORMS)
    return {**read, "tool_calls": [_call(call, where) for call in calls]} if calls else read


def _text(content: Any, where: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    for part, text in zip(parts, texts, strict=True):
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise DocumentInvalid(f"content of type {kind!r}", where=where, remedy="Text alone is learnt")
    return "".join(map(str, texts))


def _call(call: Any, where: str) -> dict[str, Any]:
    """A tool call with its arguments as an object, which is what templates expect; OpenAI's API has them as JSON."""
    if not isinstance(call, Mapping):
        raise DocumentInvalid(f"expected a tool call, found {_named(call)}", where=where, remedy=FORMS)
    read = _without_nulls(call)
    function = read.get("function")
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        read["function"] = {**function, "arguments": _parsed(function["arguments"] or "{}", f"{where}, tool_calls")}
    return read


def _without_nulls(value: Any) -> Any:
    """Tables give every row the same fields, and templates ask whether one is there."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


def _named(value: Any) -> str:
    return "nothing" if value is None or value == [] else type(value).__name__
