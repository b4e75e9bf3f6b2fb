"""/healthz, /readyz and /metrics."""

import asyncio
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST


class Web:
    """A small HTTP server.

    Args:
        trouble: what is wrong with the process, None when nothing is.
        waiting_for: what the process waits for before it is ready, None when it is.
        measure: sets gauges before they are read.
        registries: what is read.

    """

    def __init__(
        self,
        port: int,
        trouble: Callable[[], str | None],
        waiting_for: Callable[[], str | None],
        measure: Callable[[], None],
        registries: tuple[CollectorRegistry, ...],
    ) -> None:
        self._port = port
        self._trouble = trouble
        self._waiting_for = waiting_for
        self._measure = measure
        self._registries = registries
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> "Web":
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, None, self._port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return _answer(self._trouble())

    async def _readyz(self, _: web.Request) -> web.Response:
        return _answer(self._waiting_for() or self._trouble())

    async def _metrics(self, _: web.Request) -> web.Response:
        self._measure()
        # On a thread: a thousand objects have ten thousand series, and nothing else shall wait for them.
        pages = [await asyncio.to_thread(generate_latest, registry) for registry in self._registries]
        return web.Response(body=b"".join(pages), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _answer(problem: str | None) -> web.Response:
    return web.Response(status=200 if problem is None else 503, text=f"{problem or 'ok'}\n")
