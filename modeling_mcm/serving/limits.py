# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Checks of every request: its token, the rate of requests and their size; and a count of requests for Prometheus.

Each is an ASGI application around another one, and refuses a request with the service's JSON for errors.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = "/healthz"  # the one path that needs no token and has no rate
CLIENTS = 10_000  # whose rates are remembered
BODY_SECONDS = 20.0  # a body that takes longer is given up


async def refuse(send: Send, status: int, detail: str, **headers: str) -> None:
    """Answers a request with a status and a message, and closes the connection, because its body may not have been
    read.
    """
    body = json.dumps({"detail": detail}).encode()
    fields = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    encoded = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


class RateLimit:
    """Limits the requests a second from one network address, with a reserve for bursts.

    Args:
        app (ASGI application): The application that gets the requests within the limit.
        rate (`float`): Number of requests a second.
        burst (`int`): Number of requests at once.
    """

    def __init__(self, app: Application, rate: float, burst: int):
        self.app, self.rate, self.burst = app, rate, burst
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (what is left, when)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == OPEN:
            return await self.app(scope, receive, send)
        client, now = (scope.get("client") or ("",))[0], time.monotonic()
        left, before = self._clients.pop(client, (float(self.burst), now))
        left = min(self.burst, left + (now - before) * self.rate)
        self._clients[client] = (left - 1 if left >= 1 else left, now)
        if len(self._clients) > CLIENTS:
            self._clients.popitem(last=False)
        if left >= 1:
            return await self.app(scope, receive, send)
        detail = f"More than {self.rate:g} requests a second from {client or 'one address'}: wait, and send it again."
        await refuse(send, 429, detail, retry_after=str(max(1, round((1 - left) / self.rate))))


class TokenGuard:
    """Passes on only requests with the token, as `Authorization: Bearer TOKEN` or as a browser's password."""

    def __init__(self, app: Application, token: str):
        self.app, self.token = app, token.encode()

    def _fits(self, authorization: str) -> bool:
        kind, _, secret = authorization.partition(" ")
        if kind.lower() == "basic":
            try:
                secret = base64.b64decode(secret, validate=True).decode().partition(":")[2]
            except (binascii.Error, ValueError):
                return False
        elif kind.lower() != "bearer":
            return False
        return hmac.compare_digest(secret.strip().encode(), self.token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == OPEN:
            return await self.app(scope, receive, send)
        authorization = _header(scope, b"authorization")
        if self._fits(authorization):
            return await self.app(scope, receive, send)
        sent = "another token" if authorization else "no token"
        detail = f"The request has {sent}: send `Authorization: Bearer TOKEN` with the token of this service."
        await refuse(send, 401, detail, www_authenticate='Bearer, Basic realm="MCM", charset="UTF-8"')


class BodyLimit:
    """Passes on only requests whose body is not too large and arrives in time. Of a larger body only the limit is
    read.
    """

    def __init__(self, app: Application, limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        detail = f"The body has more than {self.limit:,} bytes: send the events in several requests."
        announced = _header(scope, b"content-length")
        if announced.isdigit() and int(announced) > self.limit:
            return await refuse(send, 413, detail)
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self.limit:
                        return await refuse(send, 413, detail)
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            return await refuse(send, 408, f"The body did not come within {BODY_SECONDS:g} seconds: send it again.")
        whole = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])

        async def again() -> MutableMapping[str, Any]:
            return next(whole, None) or await receive()

        await self.app(scope, again, send)


class Watch:
    """Counts and times every request, by method, path of the route and status.

    Args:
        app (ASGI application): The application whose requests are counted.
        record (`Callable`): Function that is called with method, route, status and seconds of each request.
    """

    def __init__(self, app: Application, record: Callable[[str, str, int, float], None]):
        self.app, self.record = app, record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = time.perf_counter(), 500

        async def seen(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, seen)
        finally:
            route = getattr(scope.get("route"), "path", "none")  # a path as it came would make endless series
            self.record(scope["method"], route, status, time.perf_counter() - start)
