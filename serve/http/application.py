"""The routes: OpenAI's, `/health` and `/metrics`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from serve.http.answer_form import AnswerForm, ChatForm, CompletionForm
from serve.http.door import Door, refused
from serve.http.exchange import Exchange
from serve.http.limits import Limits
from serve.http.metrics import ServerMetrics
from serve.http.reading import read_body
from serve.http.refusal import Refusal
from serve.http.request_body import ChatBody, CompletionBody
from serve.http.served_model import ServedModel

EVENT_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Proxies pass every piece on as it comes."""
LAST_EVENT_S = 2.0
"""For the last event of a stream, which may be the one that says that its time is over, to be sent."""
OWNER = "shearling"
READ = ["GET", "HEAD"]


class EventResponse(StreamingResponse):
    """Server-sent events; a client that leaves, or reads too slowly, ends what makes them.

    Args:
        events: closed in any case.
        timeout_s: for all of it but the last event.
    """

    def __init__(self, events: AsyncIterator[bytes], *, timeout_s: float) -> None:
        super().__init__(events, media_type="text/event-stream", headers=EVENT_HEADERS)
        self._events = events
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            async with asyncio.timeout(self._timeout_s + LAST_EVENT_S):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            return  # nobody reads: the connection is closed
        finally:
            await _close(self._events)


class Service:
    """What the routes do.

    Args:
        models: by name, at least one.
        limits: of the server.
        metrics: where things are counted.
    """

    def __init__(self, models: Mapping[str, ServedModel], *, limits: Limits, metrics: ServerMetrics) -> None:
        self._models = models
        self._limits = limits
        self._metrics = metrics
        self.door: Door | None = None

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        return await self._answer(request, await read_body(request, ChatBody, self._limits), ChatForm())

    async def complete(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        return await self._answer(request, await read_body(request, CompletionBody, self._limits), CompletionForm())

    async def list_models(self) -> dict[str, Any]:
        """`GET /v1/models`."""
        return {"object": "list", "data": [_model_object(model) for model in self._models.values()]}

    async def show_model(self, name: str) -> dict[str, Any]:
        """`GET /v1/models/NAME`."""
        return _model_object(self._find(name))

    async def health(self) -> Response:
        """`GET /health`: 200 while every model answers and new work is taken."""
        closing = self.door is not None and self.door.closed
        down = [model.name for model in self._models.values() if not model.alive]
        status = "shutting down" if closing else "degraded" if down else "ok"
        code = HTTPStatus.OK if status == "ok" else HTTPStatus.SERVICE_UNAVAILABLE
        return JSONResponse({"status": status, "models_down": down}, status_code=code)

    async def metrics(self) -> Response:
        """`GET /metrics`."""
        return Response(self._metrics.text(), media_type=CONTENT_TYPE_LATEST)

    def _find(self, name: str) -> ServedModel:
        model = self._models.get(name)
        if model is None:
            served = ", ".join(self._models)
            raise Refusal(
                HTTPStatus.NOT_FOUND,
                f"no model {name[:100]!r} here, only {served}",
                code="model_not_found",
                param="model",
            )
        return model

    async def _answer(self, request: Request, body: ChatBody | CompletionBody, form: AnswerForm) -> Response:
        timeout_s = self._limits.timeout_s
        exchange = Exchange(self._find(body.model), body, form, metrics=self._metrics, timeout_s=timeout_s)
        if not body.stream:
            return JSONResponse(await _while_connected(request, exchange.whole()))
        events = exchange.stream()
        # Refusals come before the first event, while there is still a status to give.
        first = await _while_connected(request, _first(events))
        return EventResponse(_joined(first, events), timeout_s=timeout_s)


def make_application(
    models: Mapping[str, ServedModel], *, limits: Limits, api_key: str | None, own_host: str | None
) -> Door:
    """The ASGI application, behind its door.

    Args:
        models: by name, at least one.
        limits: of the server.
        api_key: that clients must send; None lets everybody in.
        own_host: see `Door`.
    """
    metrics = ServerMetrics(models)
    service = Service(models, limits=limits, metrics=metrics)
    # Its pages of documentation would load scripts from elsewhere.
    application = FastAPI(title="Shearling", openapi_url=None, docs_url=None, redoc_url=None)
    application.add_api_route("/v1/chat/completions", service.chat, methods=["POST"], response_model=None)
    application.add_api_route("/v1/completions", service.complete, methods=["POST"], response_model=None)
    application.add_api_route("/v1/models", service.list_models, methods=READ, response_model=None)
    application.add_api_route("/v1/models/{name:path}", service.show_model, methods=READ, response_model=None)
    application.add_api_route("/health", service.health, methods=READ, response_model=None)
    application.add_api_route("/metrics", service.metrics, methods=READ, response_model=None)
    application.add_exception_handler(Refusal, _show_refusal)
    application.add_exception_handler(HTTPException, _show_http_error)
    application.add_exception_handler(Exception, _show_defect)
    service.door = Door(application, api_key=api_key, own_host=own_host, metrics=metrics)
    return service.door


async def _show_refusal(_request: Request, error: Exception) -> Response:
    return refused(error if isinstance(error, Refusal) else _defect())


async def _show_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return refused(_defect())
    message = f"{error.detail}: {request.method} {request.url.path[:100]}"
    return refused(Refusal(error.status_code, message, headers=error.headers))


async def _show_defect(_request: Request, _error: Exception) -> Response:
    return refused(_defect())


def _defect() -> Refusal:
    return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "a defect of this server; its log says more")


def _model_object(model: ServedModel) -> dict[str, Any]:
    created = int(datetime.fromisoformat(model.created).timestamp())
    return {"id": model.name, "object": "model", "created": created, "owned_by": OWNER}


async def _while_connected(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`, which is cancelled if the client leaves.

    Raises:
        Refusal: of `work`; and one that nobody reads, where the client has left.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_until_left(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return await working
        raise Refusal(499, "the client has left", code="client_left")
    finally:
        for task in (working, watching):
            task.cancel()


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _first(events: AsyncIterator[bytes]) -> bytes:
    return await anext(events)


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        if first:
            yield first
        async for event in rest:
            if event:
                yield event
    finally:
        await _close(rest)


async def _close(events: AsyncIterator[bytes]) -> None:
    close = getattr(events, "aclose", None)
    if close is not None:
        await close()
