"""A request that is not answered, in the form that clients of OpenAI's API expect."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

INVALID, RATE, SERVER = "invalid_request_error", "rate_limit_error", "server_error"


class Refusal(Exception):
    """What the client is told.

    Args:
        status: of HTTP.
        message: what is wrong, and what to do.
        code: a word for programs.
        param: the field of the body that is wrong.
        headers: beside the body.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = RATE if self.status == HTTPStatus.TOO_MANY_REQUESTS else INVALID if self.status < 500 else SERVER
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def queue_is_full(name: str, *, waiting: int) -> Refusal:
    """For more than the queue holds."""
    return Refusal(
        HTTPStatus.TOO_MANY_REQUESTS,
        f"the queue of {name} is full ({waiting} waiting): try again later",
        code="queue_full",
        headers={"Retry-After": "1"},
    )


def too_many_texts(count: int, *, most: int) -> Refusal:
    """For more than an empty queue holds."""
    return Refusal(
        HTTPStatus.BAD_REQUEST,
        f"this request asks for {count} texts, prompts times n, and at most {most} run or wait here",
        code="too_many_texts",
    )


def shutting_down() -> Refusal:
    """For work that comes after the server was told to end."""
    return Refusal(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "this server is shutting down and takes no new work",
        code="shutting_down",
        headers={"Retry-After": "1", "Connection": "close"},
    )


def model_is_down(name: str) -> Refusal:
    """For work whose model is not there any more."""
    return Refusal(
        HTTPStatus.SERVICE_UNAVAILABLE, f"the process of {name} has ended: restart the server", code="model_down"
    )


def took_too_long(timeout_s: float) -> Refusal:
    """For an answer that is not ready in time."""
    return Refusal(
        HTTPStatus.GATEWAY_TIMEOUT,
        f"no complete answer within {timeout_s:g} s, waiting included: ask for fewer tokens, or try again later",
        code="timeout",
    )
