"""Asks policy servers how they are, and gives them the routes that the cluster says they should have.

One that can't be asked is a value (None), not an error. Nothing is decided here: which route an arm's servers
must have is in the ConfigMap of their PolicyDeployment.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import aiohttp
from pydantic import ValidationError

from ratchet.api.v1alpha1.serverstats import Route, ServerStats
from ratchet_operator.adminkey import AdminKey, NoAdminKeyError
from ratchet_operator.apiserver import ApiServer
from ratchet_operator.asking import get, url_of
from ratchet_operator.build.serving import PORT, config_name, routes_in
from ratchet_operator.cache import Cache
from ratchet_operator.httproutes import find
from ratchet_operator.kinds import (
    CONFIG_MAP,
    POD,
    POLICY_DEPLOYMENT,
    REVISION_LABEL,
    SERVING_LABEL,
    Json,
    is_owned_by,
    label_value,
    labels_of,
    name_of,
    namespace_of,
    status_of,
    uid_of,
)
from ratchet_operator.metrics import POLLS_FAILED
from ratchet_operator.policies.waiting import is_ready
from ratchet_operator.queries import Queries
from ratchet_operator.reconcile.children import resource_version
from ratchet_operator.reconcile.servinggateway import Looked, asked_of
from ratchet_operator.reconcile.servingseen import Heard
from ratchet_operator.rollout.book import Book, read_book
from ratchet_operator.rollout.judging import PodAnswer
from ratchet_operator.rollout.observed import Watch, observe
from ratchet_operator.rollout.rates import rates
from ratchet_operator.sparing import sparing

log = logging.getLogger("ratchet.servers")

TIMEOUT = aiohttp.ClientTimeout(total=1.0)
AT_ONCE = 64
LONGEST_ANSWER = 1 << 20  # bytes; sixteen policies with a thousand actions each take a tenth
EVERY = 1.0  # seconds between two looks while something is on its way
QUIET_EVERY = 10.0  # seconds between two looks else
RATE_SECONDS = 3.0  # over which requests a second are counted
IDLE_SECONDS = 5.0  # without a request, after which an arm is left


@dataclass(slots=True)
class _Look:
    """What is kept of one PolicyDeployment from look to look."""

    version: str | None = ""
    book: Book = field(default_factory=Book)
    routes: Mapping[str, Route] = field(default_factory=dict[str, Route])
    heard: Heard = field(default_factory=Heard)
    watch: Watch = field(default_factory=Watch)
    at: float = float("-inf")
    rates: Mapping[str, float] = field(default_factory=dict[str, float])
    counted: tuple[PodAnswer, ...] = ()
    counted_at: float = float("-inf")
    amendments: int = 0

    def read(self, config_map: Json) -> None:
        """Take in the ledger and the routes, where they are not those of the last look."""
        version = resource_version(config_map)
        if version != self.version:
            self.version = version
            self.book, self.routes = read_book(config_map, (), None), routes_in(config_map)

    def count(self, answers: tuple[PodAnswer, ...], clock: float) -> None:
        """Work out the rates, over some seconds each time."""
        if clock - self.counted_at < RATE_SECONDS:
            return
        if self.counted:
            self.rates = rates(self.counted, answers)
        self.counted, self.counted_at = answers, clock


class ServerWatch:
    """The newest answers of every policy server.

    Args:
        api: asked for the HTTPRoutes that PolicyDeployments name.
        changed: told the namespace and name of a PolicyDeployment whose servers were asked.

    """

    def __init__(
        self, api: ApiServer, cache: Cache, key: AdminKey, changed: Callable[[str, str], None]
    ) -> None:
        self._api = api
        self._cache = cache
        self._key = key
        self._changed = changed
        self._looks: dict[str, _Look] = {}
        self._queries = Queries()
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._hurry = asyncio.Event()

    def heard(self, uid: str) -> Heard:
        """What the servers of the PolicyDeployment with a UID said."""
        look = self._looks.get(uid)
        return look.heard if look is not None else Heard()

    def hurry(self) -> None:
        """A route was written."""
        self._hurry.set()

    def amended(self, uid: str) -> None:
        """The HTTPRoute of the PolicyDeployment with a UID is no longer what was found."""
        look = self._looks.get(uid)
        if look is not None:
            look.amendments += 1
            look.heard = replace(look.heard, gateway=None)
        self._hurry.set()

    async def run(self) -> None:
        """Ask for ever."""
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
            while True:
                self._hurry.clear()
                serving = list(self._cache[POLICY_DEPLOYMENT])
                for uid in self._looks.keys() - {uid_of(obj) for obj in serving}:
                    del self._looks[uid]
                    self._queries.forget(uid)
                await asyncio.gather(*(self._look(session, obj) for obj in serving))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(EVERY):
                        await self._hurry.wait()

    async def _look(self, session: aiohttp.ClientSession, obj: Json) -> None:
        """One look. What servers of one say, which are anybody's images, must not end those at all others."""
        with sparing(f"look {POLICY_DEPLOYMENT.kind}", f"{namespace_of(obj)}/{name_of(obj)}"):
            await self._look_at(session, obj)

    async def _look_at(self, session: aiohttp.ClientSession, obj: Json) -> None:
        uid, namespace, name = uid_of(obj), namespace_of(obj), name_of(obj)
        config_map = self._cache[CONFIG_MAP].get(namespace, config_name(name))
        if config_map is None or not is_owned_by(config_map, uid):
            return
        look = self._looks.setdefault(uid, _Look())
        look.read(config_map)
        book, routes = look.book, look.routes
        clock = asyncio.get_running_loop().time()
        if not _is_moving(book, look.heard) and clock - look.at < QUIET_EVERY:
            return
        look.at, amendments = clock, look.amendments
        pods = self._pods(namespace, name)
        said, gateway = await asyncio.gather(
            asyncio.gather(*(self._ask(session, uid, pod, routes) for pod in pods)), self._gateway(obj, book)
        )
        is_followed = gateway is None or gateway.is_followed
        if look.amendments != amendments:
            gateway = None  # as the route was before
        answers = tuple(answer for answer, _ in said)
        split, trouble = book.routed.split, next((trouble for _, trouble in said if trouble), "")
        trial = book.state.trial
        queries = self._queries.found(session, obj, trial.digest if trial is not None else None)
        if answers:
            now = datetime.now(UTC)
            look.watch, followed, traffic = observe(
                look.watch, split, routes, answers, now, IDLE_SECONDS, by_gateway=is_followed
            )
            look.count(answers, clock)
            look.heard = Heard(
                answers,
                book.generation,
                followed,
                traffic,
                trouble,
                queries,
                look.rates,
                gateway,
                _hosts(pods, answers, routes),
            )
        else:  # nobody is there who could be sent anywhere
            followed = split if is_followed else None
            look.heard = Heard((), book.generation, followed, {}, trouble, queries=queries, gateway=gateway)
        self._changed(namespace, name)

    async def _gateway(self, obj: Json, book: Book) -> Looked | None:
        """The user's HTTPRoute, where there is one to look for."""
        asked = asked_of(obj, book)
        return Looked(asked, await find(self._api, asked.ours.namespace, asked.name)) if asked else None

    def _pods(self, namespace: str, name: str) -> list[Json]:
        """Those that a request can reach."""
        found = self._cache[POD].labelled(namespace, SERVING_LABEL, label_value(name))
        return [pod for pod in found if is_ready(pod) and status_of(pod).get("podIP")]

    async def _ask(
        self, session: aiohttp.ClientSession, owner: str, pod: Json, routes: Mapping[str, Route]
    ) -> tuple[PodAnswer, str]:
        """What a server says, once it was given its route where it had another; and why it took none."""
        address, arm = status_of(pod)["podIP"], labels_of(pod).get(REVISION_LABEL, "")
        base, route, trouble = url_of(address, PORT), routes.get(arm), ""
        async with self._at_once:
            stats = await _stats(session, base)
            if stats is not None and route is not None and stats.route.generation < route.generation:
                trouble = await self._order(session, base, owner, route)
                if not trouble:
                    stats = await _stats(session, base)
        if stats is None:
            POLLS_FAILED.labels("server").inc()
        return PodAnswer(uid_of(pod), arm, stats), trouble

    async def _order(self, session: aiohttp.ClientSession, base: str, owner: str, route: Route) -> str:
        """Give a server its route; returns why it did not take it, in words."""
        try:
            wire = route.model_dump(by_alias=True, exclude_defaults=True)
            headers = {"Authorization": f"Bearer {self._key.token(owner)}"}
            async with session.put(
                f"{base}/v1/route", json=wire, headers=headers, allow_redirects=False
            ) as response:
                if response.status == 200:
                    return ""
                if response.status in (401, 403):
                    return "A server refuses the operator's token: delete the Secret …-admin and its pods."
                said = (await response.content.read(500)).decode(errors="replace")
                return f"A server refuses its route: {response.status} {said}"
        except NoAdminKeyError as error:
            return str(error)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return f"A server can't be given its route: {type(error).__name__}"


def _hosts(
    pods: Iterable[Json], answers: Iterable[PodAnswer], routes: Mapping[str, Route]
) -> Mapping[str, tuple[str, ...]]:
    """By arm, the addresses of those that follow their route."""
    found: dict[str, tuple[str, ...]] = {}
    for pod, answer in zip(pods, answers, strict=True):
        route = routes.get(answer.arm)
        if answer.stats is not None and (route is None or answer.stats.route.generation == route.generation):
            found[answer.arm] = (*found.get(answer.arm, ()), status_of(pod)["podIP"])
    return found


def _is_moving(book: Book, heard: Heard) -> bool:
    """Whether more than one arm lives, or what should be so was not observed yet."""
    nap = book.state.nap
    return (
        book.state.trial is not None
        or (nap is not None and nap.phase != "Asleep")
        or heard.generation != book.generation
        or heard.split != book.routed.split
        or any(heard.traffic is None or answer.arm != book.state.stable for answer in heard.answers)
    )


async def _stats(session: aiohttp.ClientSession, base: str) -> ServerStats | None:
    """A server's answer; None where it is none. What a newer server says beside it is passed over."""
    body = await get(session, f"{base}/v1/stats", LONGEST_ANSWER)
    if body is not None:
        with contextlib.suppress(ValidationError):
            return ServerStats.model_validate_json(body, extra="ignore")
    return None
