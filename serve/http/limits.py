"""How much a server takes on: what goes beyond is refused, not queued without end."""

from __future__ import annotations

from typing import Any

import pydantic

from shearling.errors import UsageError
from shearling.strict_json import Document, describe_validation_error

CHOICES = 16
"""Most texts that one request may ask for: prompts times `n`."""
MESSAGES = 1024
"""Most messages of a chat."""
STOPS = 4
"""Most stop strings of a request, as at OpenAI's."""


class Limits(Document):
    """Of a server; those of tokens and places hold for each model.

    Attributes:
        body_bytes: of a request.
        prompt_tokens: of a prompt; None is what the context has room for.
        new_tokens: of an answer; also what a chat gets that names no number, if its context has room.
        concurrency: texts that are decoded together.
        queue: texts that may wait for a place among these.
        timeout_s: from the arrival of a request to the end of its answer, waiting included.
        grace_s: that a server told to end gives to what is running.
    """

    body_bytes: int = pydantic.Field(default=2**20, ge=1)
    prompt_tokens: int | None = pydantic.Field(default=None, ge=1)
    new_tokens: int = pydantic.Field(default=4096, ge=1)
    concurrency: int = pydantic.Field(default=32, ge=1)
    queue: int = pydantic.Field(default=128, ge=0)
    timeout_s: float = pydantic.Field(default=600.0, gt=0)
    grace_s: float = pydantic.Field(default=600.0, ge=0)


def make_limits(**values: Any) -> Limits:
    """Limits as options give them.

    Raises:
        UsageError: one is out of its range.
    """
    try:
        return Limits(**values)
    except pydantic.ValidationError as error:
        raise UsageError(
            f"such limits are none: {describe_validation_error(error)}", remedy="See the ranges in --help"
        ) from None
