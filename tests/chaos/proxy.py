"""A proxy between one operator and the API server that makes trouble as its plan says, and keeps a record.

It speaks plain HTTP to the operator and TLS to the API server. What trouble there is to make is a value
(`Trouble`); when to make it is decided by a `Plan`, which sees requests and watch events one by one.
"""

import asyncio
import contextlib
import json
import re
import ssl
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import aiohttp
from aiohttp import web
from yarl import URL

Json = dict[str, Any]
WRITES = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
LISTS_KEPT = 4


@dataclass(frozen=True, slots=True)
class Request:
    """A request of the operator. `nth` counts those with equal other fields, from 0."""

    verb: str
    resource: str
    namespace: str
    name: str
    nth: int = 0

    @property
    def writes(self) -> bool:
        return self.verb in WRITES.values()


@dataclass(frozen=True, slots=True)
class Event:
    """A watch event on its way to the operator. `nth` counts the events of this object, from 0."""

    type: str
    resource: str
    namespace: str
    name: str
    nth: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer without asking the API server."""

    status: int
    retry_after: int | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """Break the connection: before the API server hears of the request, or once it has executed it."""

    when: Literal["before", "middle", "after"]


@dataclass(frozen=True, slots=True)
class Stale:
    """Answer a list as it was some lists ago; where nothing has changed since, this is no trouble."""


@dataclass(frozen=True, slots=True)
class Hang:
    """Say nothing at all, for as long as the operator waits."""


@dataclass(frozen=True, slots=True)
class Late:
    """The API server executes the request at once, and its answer comes late."""

    seconds: float


@dataclass(frozen=True, slots=True)
class HeldBack:
    """The API server hears of the request only then."""

    until: asyncio.Event


@dataclass(frozen=True, slots=True)
class Drop:
    """The event is lost."""


@dataclass(frozen=True, slots=True)
class Hold:
    """The event comes after `seconds`, others overtaking it meanwhile; where none does, it is no trouble."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Stop:
    """The watch ends here: with an ERROR event that says 410 Gone, or with a broken connection."""

    gone: bool


Trouble = Refuse | Cut | Stale | Hang | Late | HeldBack
EventTrouble = Drop | Hold | Stop


class Plan:
    """When to make trouble; this one makes none."""

    def request(self, request: Request) -> Trouble | None:
        return None

    def event(self, event: Event) -> EventTrouble | None:
        return None

    def befell(self, trouble: Trouble | EventTrouble) -> None:
        """What was asked for was really made."""

    def executed(self, request: Request) -> None:
        """The API server has answered a write, and the operator does not know it yet."""


@dataclass(frozen=True, slots=True)
class Record:
    """One request that the API server answered."""

    request: Request
    status: int
    at: float


_PATH = re.compile(
    r"^/(?:api|apis/[^/]+)/[^/]+(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[a-z]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?$"
)


@dataclass
class Proxy:
    """Use as an async context manager; `url` is for the operator's kubeconfig.

    Args:
        upstream: the API server.
        ca: file with the certificate to trust.
        plan: when to make trouble.
        one_write_at_a_time: so that `Plan.executed` sees them in the order of their execution.

    """

    upstream: str
    ca: str
    plan: Plan = field(default_factory=Plan)
    one_write_at_a_time: bool = False
    records: list[Record] = field(default_factory=list[Record])
    url: str = ""

    async def __aenter__(self) -> "Proxy":
        self._open = asyncio.Event()
        self._open.set()
        self._generation = 0
        self._told = 0  # events that nothing held back, of all kinds
        self._seen: Counter[Request] = Counter()
        self._lists: dict[str, deque[bytes]] = defaultdict(lambda: deque(maxlen=LISTS_KEPT))
        self._writing = asyncio.Lock()
        trust = ssl.create_default_context(cafile=self.ca)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=trust),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._runner.cleanup()

    def close(self) -> None:
        """Break every connection, and every new one, until `reopen`."""
        self._open.clear()
        self._generation += 1

    def reopen(self) -> None:
        self._open.set()

    def writes(self, namespace: str | None = None) -> list[Record]:
        """What was written, renewals of the Lease apart."""
        return [
            record
            for record in self.records
            if record.request.writes
            and record.request.resource != "leases"
            and namespace in (None, record.request.namespace)
        ]

    def creations(self, namespace: str) -> Counter[tuple[str, str]]:
        """How often each object of a namespace was created, by resource and name."""
        return Counter(
            (record.request.resource, record.request.name)
            for record in self.writes(namespace)
            if record.status == 201
        )

    async def _handle(self, incoming: web.Request) -> web.StreamResponse:
        generation = self._generation
        body = await incoming.read()
        request = self._parse(incoming, body)
        trouble = self.plan.request(request)
        if not self._open.is_set():
            return _broken(incoming)
        if trouble == Cut("before"):
            self.plan.befell(trouble)
            return _broken(incoming)
        if isinstance(trouble, Hang):
            while not _gone(incoming):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            self.plan.befell(trouble)
            return _broken(incoming)
        if isinstance(trouble, Refuse):
            self.plan.befell(trouble)
            return _refusal(trouble)
        if isinstance(trouble, HeldBack):
            await trouble.until.wait()
            self.plan.befell(trouble)
        if request.verb == "watch":
            return await self._watch(incoming, request, generation)
        key = f"{incoming.path_qs} {incoming.headers.get('Accept')}"
        kept = list(self._lists[key]) if request.verb == "list" else []
        async with self._writing if request.writes and self.one_write_at_a_time else contextlib.nullcontext():
            if generation != self._generation or not self._open.is_set():
                return _broken(incoming)
            status, headers, text = await self._ask(incoming, body)
            self.records.append(Record(request, status, time.monotonic()))
            if request.writes:
                self.plan.executed(request)
        if request.verb == "list" and status == 200:
            self._lists[key].append(text)
            older = (one for one in kept if _versions(one) != _versions(text))
            if isinstance(trouble, Stale) and (old := next(older, None)) is not None:
                self.plan.befell(trouble)
                text = old
        if isinstance(trouble, Late):
            await asyncio.sleep(trouble.seconds)
            self.plan.befell(trouble)
        if generation != self._generation:
            return _broken(incoming)
        if trouble == Cut("after"):
            self.plan.befell(trouble)
            return _broken(incoming)
        if trouble == Cut("middle"):
            half = web.StreamResponse(status=status, headers=headers)
            half.content_length = len(text)
            await half.prepare(incoming)
            await half.write(text[: len(text) // 2])
            self.plan.befell(trouble)
            return _broken(incoming, half)
        return web.Response(status=status, headers=headers, body=text)

    async def _ask(self, incoming: web.Request, body: bytes) -> tuple[int, dict[str, str], bytes]:
        async with self._session.request(
            incoming.method,
            self._url(incoming),
            headers=_headers(incoming),
            data=body or None,
        ) as answer:
            text = await answer.read()
            return answer.status, {"Content-Type": answer.headers.get("Content-Type", "")}, text

    async def _watch(self, incoming: web.Request, request: Request, generation: int) -> web.StreamResponse:
        async with self._session.get(self._url(incoming), headers=_headers(incoming)) as answer:
            if answer.status != 200:
                return web.Response(status=answer.status, body=await answer.read())
            stream = web.StreamResponse(headers={"Content-Type": "application/json"})
            held: dict[tuple[str, str], asyncio.Task[None]] = {}

            async def late(line: bytes, hold: Hold | None, behind: asyncio.Task[None] | None) -> None:
                before = self._told
                await asyncio.sleep(hold.seconds if hold is not None else 0)
                if behind is not None:  # events of one object keep their order
                    await behind
                with contextlib.suppress(ConnectionError):
                    await stream.write(line)
                    if hold is not None and self._told > before:
                        self.plan.befell(hold)

            def over() -> bool:
                return generation != self._generation or _gone(incoming)

            try:
                await stream.prepare(incoming)
                async for line in self._lines(answer, over):
                    event = self._event(request, json.loads(line))
                    trouble = self.plan.event(event)
                    if isinstance(trouble, Stop | Drop):
                        self.plan.befell(trouble)
                    if isinstance(trouble, Stop):
                        if trouble.gone:
                            await stream.write(_line({"type": "ERROR", "object": _status(410)}))
                            return stream
                        return _broken(incoming, stream)
                    before = held.get((event.namespace, event.name))
                    if isinstance(trouble, Drop):
                        continue
                    if isinstance(trouble, Hold) or (before is not None and not before.done()):
                        hold = trouble if isinstance(trouble, Hold) else None
                        held[event.namespace, event.name] = asyncio.create_task(late(line, hold, before))
                    else:
                        await stream.write(line)
                        self._told += event.type != "BOOKMARK"
                if generation != self._generation:
                    return _broken(incoming, stream)
            except ConnectionError:  # the operator has gone
                pass
            finally:
                for task in held.values():
                    task.cancel()
            return stream

    def _url(self, incoming: web.Request) -> URL:
        return URL(self.upstream + incoming.raw_path, encoded=True)

    @staticmethod
    async def _lines(answer: aiohttp.ClientResponse, ended: Callable[[], bool]) -> AsyncIterator[bytes]:
        buffer = b""
        while not ended():
            try:
                async with asyncio.timeout(0.2):
                    chunk = await answer.content.readany()
            except TimeoutError:
                continue
            if not chunk:
                return
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                yield line + b"\n"

    def _parse(self, incoming: web.Request, body: bytes) -> Request:
        found = _PATH.match(incoming.path)
        part = {key: value or "" for key, value in found.groupdict().items()} if found else {}
        name = part.get("name", "")
        if incoming.method == "GET":
            verb = "watch" if "watch" in incoming.query else "get" if name or not found else "list"
        else:
            verb = WRITES[incoming.method]
        if verb == "create":
            name = json.loads(body)["metadata"]["name"]
        resource = "/".join(filter(None, (part.get("resource", incoming.path), part.get("sub"))))
        request = Request(verb, resource, part.get("namespace", ""), name)
        self._seen[request] += 1
        return replace(request, nth=self._seen[request] - 1)

    def _event(self, request: Request, event: Json) -> Event:
        metadata = event["object"].get("metadata", {})
        key = Request("event", request.resource, metadata.get("namespace", ""), metadata.get("name", ""))
        self._seen[key] += 1
        return Event(event["type"], key.resource, key.namespace, key.name, self._seen[key] - 1)


def _headers(incoming: web.Request) -> dict[str, str]:
    kept = ("Authorization", "Accept", "Content-Type", "User-Agent")
    given = {name: incoming.headers[name] for name in kept if name in incoming.headers}
    return {**given, "Accept-Encoding": "identity"}


def _versions(answer: bytes) -> set[tuple[str, str]]:
    """What a list says, its own resourceVersion apart, which grows with each write to anything."""
    about = [item["metadata"] for item in json.loads(answer)["items"]]
    return {(one["uid"], one["resourceVersion"]) for one in about}


def _line(event: Json) -> bytes:
    return json.dumps(event).encode() + b"\n"


def _gone(incoming: web.Request) -> bool:
    return incoming.transport is None or incoming.transport.is_closing()


def _broken(incoming: web.Request, begun: web.StreamResponse | None = None) -> web.StreamResponse:
    if incoming.transport is not None:
        incoming.transport.abort()
    return begun or web.Response()


def _status(code: int) -> Json:
    reasons = {409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError"}
    return {
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code,
        "reason": reasons.get(code, "ServiceUnavailable"), "message": f"chaos answers {code}",
    }  # fmt: skip


def _refusal(trouble: Refuse) -> web.Response:
    wait = {} if trouble.retry_after is None else {"Retry-After": str(trouble.retry_after)}
    return web.json_response(_status(trouble.status), status=trouble.status, headers=wait)
