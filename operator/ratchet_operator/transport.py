"""kopf, and nothing but: watches of our own kinds in, the feed out. No handler decides or writes anything."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import kopf
from kopf._core.engines.peering import Identity
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory
from kubernetes.aio.client.configuration import Configuration

from ratchet_operator.apiserver import PAGE, credentials, session
from ratchet_operator.feed import Feed
from ratchet_operator.kinds import (
    API_VERSION,
    AUTOSCALER,
    COMPONENT_LABEL,
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    ENDPOINT_SLICE,
    NETWORK_POLICY,
    NODE,
    POD,
    POLICY_DEPLOYMENT,
    POOL_LABEL,
    ROLLOUT_POOL,
    SERVICE,
    SERVING_LABEL,
    TRAINING_JOB,
    WORKER_SET,
    Kind,
)
from ratchet_operator.settings import Settings
from ratchet_operator.watch import SILENCE_SECONDS, WATCH_SECONDS, pause

log = logging.getLogger("ratchet.transport")


def watched(settings: Settings) -> dict[Kind, str | None]:
    """The kinds to watch, each with its label selector."""
    kinds: dict[Kind, str | None] = dict.fromkeys((TRAINING_JOB, ROLLOUT_POOL, POLICY_DEPLOYMENT))
    kinds |= dict.fromkeys((CONFIG_MAP, DEPLOYMENT, SERVICE, POD, NETWORK_POLICY), COMPONENT_LABEL)
    kinds |= dict.fromkeys((AUTOSCALER, DISRUPTION_BUDGET, ENDPOINT_SLICE), SERVING_LABEL)
    # Deployments make ReplicaSets with the job's label too; only the workers' belong to a pool.
    kinds[WORKER_SET] = POOL_LABEL
    if settings.nodes_visible:
        kinds[NODE] = None
    return kinds


def by_kopf(kind: Kind) -> bool:
    """Whether kopf watches this kind: ours it does; all others are watched by `watch.Watch`."""
    return kind.api_version == API_VERSION


def registry(
    settings: Settings, feed: Feed, configuration: Configuration, followed: Callable[[str], None]
) -> kopf.OperatorRegistry:
    """One handler per kind."""
    handlers = kopf.OperatorRegistry()
    for kind in filter(by_kopf, watched(settings)):
        _register(handlers, kind, feed)

    async def login(**_: Any) -> kopf.AiohttpSession:
        surviving = Surviving(configuration, followed)
        connections = session(configuration, limit=0, middlewares=(surviving,))
        return kopf.AiohttpSession(server=str(configuration.host), aiohttp_session=connections)

    kopf.on.login(registry=handlers)(login)  # pyright: ignore[reportUnknownMemberType]
    return handlers


def _register(handlers: kopf.OperatorRegistry, kind: Kind, feed: Feed) -> None:
    async def seen(event: kopf.RawEvent, **_: Any) -> None:
        obj: dict[str, Any] = dict(event["object"])
        tell = feed.gone if event["type"] == "DELETED" else feed.seen
        tell(kind, obj)

    kopf.on.event(kind.group, kind.version, kind.plural, registry=handlers, id=kind.plural)(seen)  # pyright: ignore[reportUnknownMemberType]


class Surviving:
    """Between kopf and its connections: what would end kopf, and what kopf does not tell.

    A 410 as the answer to a request ends it, while the same as an event of a watch does not. The request is
    made again without what the API server no longer knows: a watch then begins with all that there is, a list
    with its first page.

    Args:
        configuration: whose credentials each request carries.
        followed: told a collection's path once a watch has begun there anew. From that moment on every change
            is told; what went away before is not.

    """

    def __init__(self, configuration: Configuration, followed: Callable[[str], None]) -> None:
        self._configuration = configuration
        self._followed = followed
        self._listed: set[str] = set()

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """One request of kopf's."""
        request.headers.update(await credentials(self._configuration))
        answer = await handler(request)
        path, watches, anew = request.url.path, request.url.query.get("watch") == "true", False
        for wait in Unweary():
            if answer.status != 410:
                break
            answer.close()
            await asyncio.sleep(wait)
            request.url = request.url.without_query_params("resourceVersion", "continue")
            anew, answer = True, await handler(request)
        if not watches:
            try:
                await answer.read()
            except aiohttp.ClientPayloadError as error:  # of this one kopf asks again, of that it ends
                raise aiohttp.ClientConnectionError(str(error)) from error
            self._listed.add(path)
        elif answer.status == 200 and (anew or path in self._listed):
            self._listed.discard(path)
            self._followed(path)
        return answer


class Unweary:
    """Seconds to wait after each failed request of kopf's, without an end: the last one would end kopf."""

    def __iter__(self) -> Iterator[float]:
        return (pause(number) for number in itertools.count(1))


class NoMemory(kopf.DiffBaseStorage):
    """Keeps no last-seen state of objects. Only handlers that detect changes need one, and there are none;
    the deep copies that it is made of are most of an event's cost (0.56 ms with it, 0.13 ms without).
    """

    def build(self, *, body: kopf.Body, extra_fields: object = None) -> kopf.BodyEssence:
        """Nothing is essential."""
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Nothing was kept."""
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Nothing is written."""


class NoMemories(ResourceMemories):
    """Keeps nothing of an object between two of its events: no handler of ours has anything to remember."""

    async def recall(self, raw_body: kopf.RawBody, **kwargs: Any) -> ResourceMemory:
        """A new memory."""
        kwargs["ephemeral"] = True
        return await super().recall(raw_body, **kwargs)


def kopf_settings(settings: Settings) -> kopf.OperatorSettings:
    """Kopf as a transport: no peering, no scanning, no Events, no writes."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.peering.standalone = True
    chosen.scanning.disabled = True
    chosen.persistence.diffbase_storage = NoMemory()
    chosen.networking.request_timeout = 20
    chosen.networking.connect_timeout = 10
    chosen.networking.error_backoffs = Unweary()
    chosen.watching.connect_timeout = 10
    chosen.watching.server_timeout = WATCH_SECONDS
    chosen.watching.client_timeout = WATCH_SECONDS + 60
    chosen.watching.inactivity_timeout = SILENCE_SECONDS
    chosen.watching.chunk_size = PAGE
    chosen.queueing.idle_timeout = 0.1  # a task and a queue for each object, for as long as it is in motion
    chosen.process.ultimate_exiting_timeout = 20
    return chosen


async def run(
    settings: Settings, feed: Feed, configuration: Configuration, followed: Callable[[str], None]
) -> None:
    """Watch until a signal comes.

    Args:
        settings: what to watch.
        feed: is told of every change.
        configuration: where the API server is, and who we are.
        followed: told the path of a collection whenever a watch of it has begun anew.

    Raises:
        Exception: whatever kopf gave up on: a watch that broke for good, a discovery that it can't read.

    """
    await kopf.operator(
        registry=registry(settings, feed, configuration, followed),
        settings=kopf_settings(settings),
        memories=NoMemories(),
        identity=Identity(settings.pod_name),  # else kopf looks for a user name, and a random UID has none
        standalone=True,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
    )
