"""How the two endpoints write down what a model said: OpenAI's objects, whole and in chunks."""

from __future__ import annotations

from typing import Any, Protocol


class AnswerForm(Protocol):
    """Of one endpoint.

    Attributes:
        prompt_field: what an error about the prompt names.
        id_prefix: of an answer's id.
        whole, chunk: names of the objects.
    """

    prompt_field: str
    id_prefix: str
    whole: str
    chunk: str

    def choice(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        """A whole text."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a stream says of a text before its first piece."""

    def piece(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        """A part of a text; the last one has a reason."""


class ChatForm:
    """Of `/v1/chat/completions`."""

    prompt_field = "messages"
    id_prefix = "chatcmpl"
    whole = "chat.completion"
    chunk = "chat.completion.chunk"

    def choice(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        """See `AnswerForm`."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}

    def opening(self, index: int) -> dict[str, Any] | None:
        """See `AnswerForm`."""
        return self._delta(index, {"role": "assistant", "content": ""}, None)

    def piece(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        """See `AnswerForm`."""
        return self._delta(index, {"content": text} if text or reason is None else {}, reason)

    def _delta(self, index: int, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


class CompletionForm:
    """Of `/v1/completions`."""

    prompt_field = "prompt"
    id_prefix = "cmpl"
    whole = "text_completion"
    chunk = "text_completion"

    def choice(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        """See `AnswerForm`."""
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}

    def opening(self, index: int) -> dict[str, Any] | None:
        """See `AnswerForm`."""
        return None

    def piece(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        """See `AnswerForm`."""
        return self.choice(index, text, reason)
