"""The page of a station: Starlette and uvicorn, in a thread beside the line."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import functools
import hashlib
import importlib.resources
import ipaddress
import json
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from sprfast.errors import InputError, SprfastError
from sprfast.line.station import pictures
from sprfast.line.station.access import Access
from sprfast.line.station.feed import Feed
from sprfast.line.station.station import Station

SIDES = (160, 640)  # pixels of a picture that may be asked for
CACHED = 64  # pictures
LARGEST_REQUEST = 2**12  # bytes
TOKEN = "x-station-token"  # header; in an address it is `token`

Endpoint = Callable[[Request], Awaitable[Response]]


class Server:
    """Serves the page from its own thread, from `with` until its end.

    Args:
        host, port: to bind; port 0 takes a free one.

    Raises:
        InputError: the address cannot be bound.
    """

    def __init__(self, station: Station, host: str = "127.0.0.1", port: int = 0) -> None:
        self.access = Access(host)
        self._socket = _bound(host, port)
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{self._socket.getsockname()[1]}/"
        self._page = _Page(station, self.access)
        config = uvicorn.Config(
            self._page.app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            limit_concurrency=256,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="sprfast-station-page", daemon=True)

    @property
    def url(self) -> str:
        """The address with the token in it."""
        return f"{self.address}?token={self.access.token}"

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(5.0)
        self._page.close()
        self._socket.close()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        telling = asyncio.create_task(self._page.feed.run())
        closing = asyncio.create_task(self._close_feed())
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            telling.cancel()
            closing.cancel()

    async def _close_feed(self) -> None:
        """Streams never end by themselves, and the server waits for them."""
        while not self._server.should_exit:
            await asyncio.sleep(0.05)
        self._page.feed.close()


class _Page:
    """The routes. What takes longer than a moment runs in threads: pictures in one, so that many
    viewers take no more of the machine than one does, and changes in another.
    """

    def __init__(self, station: Station, access: Access) -> None:
        self._station, self._access, self.feed = station, access, Feed(station)
        self._drawing = concurrent.futures.ThreadPoolExecutor(1, "sprfast-station-picture")
        self._changing = concurrent.futures.ThreadPoolExecutor(2, "sprfast-station-change")
        self._drawn = functools.lru_cache(CACHED)(self._draw)
        self._html, self._policy = _page_file()
        self._actions: dict[str, tuple[dict[str, type], Callable[..., str]]] = {
            "/pause": ({"paused": bool}, self._pause),
            "/mark": ({"number": int, "good": bool}, station.mark),
            "/recalibrate": ({}, station.recalibrate),
            "/swap": ({"model": str}, station.swap),
        }
        seen: list[tuple[str, Endpoint]] = [
            ("/", self._index),
            ("/events", self._events),
            ("/picture/{number:int}", self._picture),
        ]
        self.app = Starlette(
            routes=[
                *(Route(path, self._guarded(endpoint, False), methods=["GET"]) for path, endpoint in seen),
                *(Route(path, self._guarded(self._act, True), methods=["POST"]) for path in self._actions),
            ]
        )

    def close(self) -> None:
        """End the threads; a change that is under way goes on to its end."""
        self._drawing.shutdown(cancel_futures=True)
        self._changing.shutdown(cancel_futures=True)

    def _guarded(self, endpoint: Endpoint, acting: bool) -> Endpoint:
        async def guarded(request: Request) -> Response:
            response: Response
            token = request.headers.get(TOKEN) or (None if acting else request.query_params.get("token"))
            if reason := self._access.refusal(request.headers, token, acting):
                response = JSONResponse({"error": reason}, 403) if acting else PlainTextResponse(reason, 403)
            else:
                response = await endpoint(request)
            response.headers["cache-control"] = "no-store"
            response.headers["content-security-policy"] = self._policy
            response.headers["referrer-policy"] = "no-referrer"
            response.headers["x-content-type-options"] = "nosniff"
            return response

        return guarded

    async def _index(self, _: Request) -> Response:
        return Response(self._html, media_type="text/html; charset=utf-8")

    async def _events(self, _: Request) -> Response:
        events = self.feed.events()
        try:
            first = await anext(events)
        except SprfastError as error:
            return PlainTextResponse(str(error), 503)
        except StopAsyncIteration:
            return PlainTextResponse("the station is being closed", 503)

        async def stream() -> Any:
            try:
                yield first
                async for event in events:
                    yield event
            finally:
                await events.aclose()

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def _picture(self, request: Request) -> Response:
        side = request.query_params.get("side", str(SIDES[-1]))
        if side not in map(str, SIDES):
            return PlainTextResponse(f"side: {side[:20]!r} is not one of {SIDES}", 400)
        heat = request.query_params.get("heat", "1") != "0"
        work = functools.partial(self._drawn, request.path_params["number"], int(side), heat)
        try:
            content = await asyncio.get_running_loop().run_in_executor(self._drawing, work)
        except SprfastError as error:
            return PlainTextResponse(str(error), 404)
        return Response(content, media_type="image/jpeg")

    def _draw(self, number: int, side: int, heat: bool) -> bytes:
        shown = self._station.history.picture(number)
        if shown is None:
            raise InputError(f"answer {number}: its picture is not kept any more")
        return pictures.jpeg(shown, side, heat, self._station.predictor.preprocessing)

    async def _act(self, request: Request) -> Response:
        fields, action = self._actions[request.url.path]
        try:
            given = _body(await _content(request), fields)
            work = functools.partial(action, *given)
            said = await asyncio.get_running_loop().run_in_executor(self._changing, work)
        except SprfastError as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse({"said": said})

    def _pause(self, paused: bool) -> str:
        self._station.paused = paused
        return "paused: every part is answered with ERROR" if paused else "running"


async def _content(request: Request) -> bytes:
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > LARGEST_REQUEST:
            raise InputError(f"request: is larger than {LARGEST_REQUEST} bytes")
    return content


def _body(content: bytes, fields: dict[str, type]) -> Iterator[Any]:
    """The values of exactly these fields, in their order."""
    try:
        document = json.loads(content or b"{}")
    except ValueError as error:
        raise InputError(f"request: is no JSON ({error})") from error
    if not isinstance(document, dict) or document.keys() != fields.keys():
        raise InputError(f"request: expected an object with {', '.join(fields) or 'no field'}")
    for name, kind in fields.items():
        if type(document[name]) is not kind:
            raise InputError(f"{name}: {type(document[name]).__name__} is not allowed, expected {kind.__name__}")
    return iter([document[name] for name in fields])


def _bound(host: str, port: int) -> socket.socket:
    try:
        version = ipaddress.ip_address(host).version if host != "localhost" else 4
    except ValueError as error:
        raise InputError(f"host: {host!r} is not allowed, expected an address of this machine, or localhost") from error
    bound = socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(64)
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"the page cannot be served on port {port} of {host} ({reason}); name another port") from error
    return bound


def _page_file() -> tuple[bytes, str]:
    """The page, and the policy under which a browser runs its own script and no other."""
    page = importlib.resources.files("sprfast.line.station").joinpath("page.html").read_bytes()
    script = re.search(rb"<script>(.*?)</script>", page, re.S)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1]).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src 'self' blob: data:; "
        "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    return page, policy
