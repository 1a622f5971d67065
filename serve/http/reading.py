"""From the bytes of a request to a body that was checked; everything wrong about them is the client's error."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from http import HTTPStatus
from typing import Any, TypeVar

import pydantic
from starlette.requests import ClientDisconnect, Request

from serve.http.limits import Limits
from serve.http.refusal import Refusal
from shearling.errors import DocumentInvalid
from shearling.strict_json import describe_validation_error, parse_json

READ_S = 30.0
"""Of a body, from its first byte to its last."""
DISCARDED_BYTES = 1 << 25
"""Read beyond what is taken, so that a client hears why; more closes the connection."""
JSON_TYPE = "application/json"

Body = TypeVar("Body", bound=pydantic.BaseModel)


async def read_body(request: Request, model: type[Body], limits: Limits) -> Body:
    """The body of a request; a field that is `null` is as good as absent, whether `model` knows it or not.

    Raises:
        Refusal: not JSON, too large, too slow, or not what `model` says.
    """
    # Also keeps web pages from elsewhere out: for them a browser sends other types alone, unless it has asked first.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON_TYPE:
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"send the body as {JSON_TYPE}", code="unsupported_media_type")
    raw = await _read(request, limits.body_bytes)
    try:
        data = parse_json(raw, where="body")
        # Once more as JSON, so that strict validation takes lists for tuples.
        return model.model_validate_json(json.dumps(_without_nulls(data)))
    except DocumentInvalid as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, str(error), code="invalid_json") from None
    except pydantic.ValidationError as error:
        place = error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"]
        raise Refusal(
            HTTPStatus.BAD_REQUEST,
            describe_validation_error(error),
            code="invalid_value",
            param=str(place[0]) if place else None,
        ) from None


async def discard_body(request: Request) -> None:
    """Read what is left of a body, within reason: a client that still sends when the connection closes may never see
    the answer.
    """
    left = DISCARDED_BYTES
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(READ_S):
            async for chunk in request.stream():
                left -= len(chunk)
                if left < 0:
                    return


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        # Most items of a long list are ids of tokens.
        return [_without_nulls(item) if isinstance(item, dict | list) else item for item in value]
    return value


async def _read(request: Request, most_bytes: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > most_bytes:
        await discard_body(request)
        raise _too_large(most_bytes)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(READ_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= most_bytes:
                    chunks.append(chunk)
                elif size > most_bytes + DISCARDED_BYTES:
                    break
    except TimeoutError:
        raise Refusal(
            HTTPStatus.REQUEST_TIMEOUT,
            f"the body did not come within {READ_S:g} s",
            code="body_too_slow",
            headers={"Connection": "close"},
        ) from None
    except ClientDisconnect:
        raise Refusal(HTTPStatus.BAD_REQUEST, "the client left before its body was whole") from None
    if size > most_bytes:
        raise _too_large(most_bytes)
    return b"".join(chunks)


def _too_large(most_bytes: int) -> Refusal:
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body is larger than {most_bytes} bytes",
        code="body_too_large",
        headers={"Connection": "close"},
    )
