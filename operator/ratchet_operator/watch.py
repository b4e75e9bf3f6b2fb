"""What the feed is told of each kind: all of it by a list, then every change by a watch, for ever.

The kinds of others (Pods, Deployments, ...) are watched here. Our own come by kopf, and only their lists are
made here, since kopf's handlers see what a list contains and not what it lacks. A watch goes on where it
broke; where the API server no longer knows that place, everything is listed again.
"""

import asyncio
import logging
import random
from contextlib import AbstractContextManager, aclosing

from ratchet_operator.apiserver import ApiError, ApiServer
from ratchet_operator.feed import Feed
from ratchet_operator.kinds import Json, Kind, meta, name_of, namespace_of, sub, uid_of
from ratchet_operator.metrics import ERRORS, WATCH_MISSED
from ratchet_operator.sparing import sparing

log = logging.getLogger("ratchet.watch")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 20.0
WATCH_SECONDS = 300  # until the API server ends a watch; not the same for all, which would end together
SILENCE_SECONDS = (
    150.0  # an API server says at least once a minute how far it is; no word is a dead connection
)
DOUBTFUL = 4  # after so many failures in a row at one place, begin anew


class Lists:
    """All objects of a kind, in one namespace or everywhere.

    Attributes:
        listed: set once everything was listed.
        first: resourceVersion of the first list.

    """

    def __init__(
        self, api: ApiServer, feed: Feed, kind: Kind, namespace: str | None, selector: str | None
    ) -> None:
        self._api, self._feed = api, feed
        self.kind, self.namespace, self.selector = kind, namespace, selector
        self.listed = asyncio.Event()
        self.first = 0

    @property
    def path(self) -> str:
        """Where the API server has these objects."""
        return self.kind.path(self.namespace)

    async def list(self) -> int:
        """Tell all there is, and forget what is gone; returns the resourceVersion of the list.

        Raises:
            ApiError: the list broke; what it had told until then stands.

        """
        there: set[str] = set()
        missed, version = 0, 0
        async for page, of_list in self._api.pages(self.kind, self.namespace, self.selector):
            version = of_list
            for obj in page:  # items of a list carry neither
                obj.setdefault("apiVersion", self.kind.api_version)
                obj.setdefault("kind", self.kind.kind)
                there.add(uid_of(obj))
                with self._sparing(obj):
                    missed += self._feed.seen(self.kind, obj)
        missed += self._feed.relisted(self.kind, there, version, (self.namespace,) if self.namespace else ())
        if not self.listed.is_set():
            self.first = version
        else:
            WATCH_MISSED.labels(self.kind.kind).inc(missed)
            if missed:
                log.info(
                    "a list found changes that no watch had told", extra={"kind": self.kind.kind, "n": missed}
                )
        self.listed.set()
        return version

    def _sparing(self, obj: Json) -> AbstractContextManager[None]:
        """An object may hold what can't be kept, as one that is 255 deep; all others are told."""
        return sparing(f"feed {self.kind.kind}", f"{namespace_of(obj)}/{name_of(obj)}")

    def _failed(self, what: str, error: ApiError, pause: float) -> None:
        ERRORS.labels(f"{what} {self.kind.kind} {error.status}").inc()
        log.warning("%s failed", what, extra={"kind": self.kind.kind, "error": str(error), "retry_in": pause})


class Relists(Lists):
    """Lists again whenever another watch of these objects has begun anew."""

    def __init__(
        self, api: ApiServer, feed: Feed, kind: Kind, namespace: str | None, selector: str | None
    ) -> None:
        super().__init__(api, feed, kind, namespace, selector)
        self.wanted = asyncio.Event()

    async def run(self) -> None:
        """For ever."""
        failures = 0
        while True:
            await self.wanted.wait()
            self.wanted.clear()
            try:
                await self.list()
                failures = 0
            except ApiError as error:
                self.wanted.set()
                failures += 1
                wait = pause(failures, error)
                self._failed("list", error, wait)
                await asyncio.sleep(wait)


class Watch(Lists):
    """Lists and then watches."""

    def __init__(
        self, api: ApiServer, feed: Feed, kind: Kind, namespace: str | None, selector: str | None
    ) -> None:
        super().__init__(api, feed, kind, namespace, selector)
        self._at: str | None = None
        """The resourceVersion up to which everything was told; None where that is not known."""
        self._failures = 0

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                if self._at is None:
                    self._at = str(await self.list())
                await self._follow(self._at)
                self._failures += 1  # as long as it tells nothing, a watch that ends is a failure too
                wait = pause(self._failures)
            except ApiError as error:
                self._failures += 1
                if error.status == 410 or self._failures % DOUBTFUL == 0:
                    self._at = None
                wait = pause(self._failures, error)
                if error.status not in (0, 410):  # 0: connections break, and a watch goes on
                    self._failed("watch", error, wait)
            await asyncio.sleep(wait)

    async def _follow(self, since: str) -> None:
        seconds = WATCH_SECONDS * random.uniform(0.8, 1.2)
        events = self._api.watch(
            self.kind, self.namespace, self.selector, since, seconds=seconds, silence=SILENCE_SECONDS
        )
        async with aclosing(events):
            async for event in events:
                self._tell(event)

    def _tell(self, event: Json) -> None:
        obj: Json = sub(event, "object")
        match event.get("type"):
            case "ADDED" | "MODIFIED":
                with self._sparing(obj):
                    self._feed.seen(self.kind, obj)
            case "DELETED":
                with self._sparing(obj):
                    self._feed.gone(self.kind, obj)
            case "ERROR":
                raise ApiError(
                    int(obj.get("code") or 0), str(obj.get("reason", "")), str(obj.get("message", ""))
                )
            case _:  # a bookmark says only how far we are
                pass
        self._at = meta(obj).get("resourceVersion") or self._at
        self._failures = 0


def pause(failures: int, error: ApiError | None = None) -> float:
    """Seconds until the next try: longer with each failure, and never less than the API server asks for."""
    grown = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures, 10))
    asked = error.retry_after if error is not None else None
    return max(asked or 0.0, grown * random.uniform(0.5, 1.0))
