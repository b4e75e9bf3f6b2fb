"""The one path that does all the work: key -> observe -> reconcile -> execute."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from ratchet_operator.adminkey import AdminKey
from ratchet_operator.apiserver import ApiError, ApiServer
from ratchet_operator.cache import Cache
from ratchet_operator.execute import Executor
from ratchet_operator.feed import Feed
from ratchet_operator.kinds import (
    CONFIG_MAP,
    KIND_BY_NAME,
    POLICY_DEPLOYMENT,
    TRAINING_JOB,
    Json,
    Key,
    Kind,
    uid_of,
)
from ratchet_operator.metrics import ERRORS, OBJECTS, RECONCILE_SECONDS
from ratchet_operator.observe import Observer, SecretSightings
from ratchet_operator.pace import Pace
from ratchet_operator.plan import Plan
from ratchet_operator.reconcile.job import reconcile_job
from ratchet_operator.reconcile.pool import reconcile_pool
from ratchet_operator.series import ObjectSeries
from ratchet_operator.settings import Settings
from ratchet_operator.taken import Taken
from ratchet_operator.trainers import TrainerWatch
from ratchet_operator.transport import by_kopf, watched
from ratchet_operator.watch import Relists, Watch
from ratchet_operator.workqueue import Lane, WorkQueue

if TYPE_CHECKING:
    from ratchet_operator.serving import Serving

log = logging.getLogger("ratchet.controller")


NAMESPACE_SECONDS = 60.0  # until something is tried again in a namespace that was being deleted


class Controller:
    """Caches, queue and workers of one leader."""

    def __init__(self, settings: Settings, api: ApiServer) -> None:
        self._settings = settings
        self._api = api
        kinds = watched(settings)
        self.cache = Cache(kinds)
        self.queue = WorkQueue(time.monotonic)
        self.feed = Feed(self.cache, self.queue)
        self._own = [
            Relists(api, self.feed, kind, namespace, selector)
            for kind, namespace, selector in _scopes(settings, kinds)
            if by_kopf(kind)
        ]
        self._watches = [
            Watch(api, self.feed, kind, namespace, selector)
            for kind, namespace, selector in _scopes(settings, kinds)
            if not by_kopf(kind)
        ]
        self.trainers = TrainerWatch(self.cache, settings.status_interval, self.feed.trainer_said)
        self._key = AdminKey(settings.admin_key_file)
        self._serves = asyncio.Event()
        # Shorter than the time between two resyncs, so that each of them looks.
        self._sightings = SecretSightings(api, 0.8 * settings.resync_seconds)
        self._observer = Observer(
            api,
            self.cache,
            self._sightings,
            settings.installation,
            self.trainers.answer,
            self.trainers.all_asked,
        )
        self._taken = Taken(time.monotonic)
        self._executor = Executor(api, self.feed, self._sightings, settings.pod_name, self._key, self._taken)
        self._left: dict[Key, tuple[str, float]] = {}
        self._pace = Pace(time.monotonic)
        self.objects = CollectorRegistry()
        self.objects.register(ObjectSeries(self.cache))
        self._synced = asyncio.Event()

    def parts(self) -> list[Coroutine[Any, Any, None]]:
        """What a leader does, each part for ever."""
        workers = (self.work for _ in range(self._settings.workers))
        return [
            *(lists.run() for lists in (*self._own, *self._watches)),
            self.resync_forever(),
            *(self._once_synced(part) for part in (self.trainers.run, self._watch_servers, *workers)),
        ]

    async def first_listing(self) -> None:
        """Wait until all is known. Our own kinds are listed once kopf follows them, so that the end of each
        of them is told, or was seen; only then is anything done.
        """
        await asyncio.gather(*(lists.listed.wait() for lists in (*self._own, *self._watches)))
        self._observer.oldest_news = max(lists.first for lists in self._own if lists.kind is TRAINING_JOB)
        self.feed.everything(Lane.CHANGE)
        self._synced.set()

    async def _once_synced(self, part: Callable[[], Awaitable[None]]) -> None:
        await self._synced.wait()
        await part()

    def unlisted(self) -> list[str]:
        """The collections that were not listed yet; no work begins before all were."""
        return [lists.path for lists in (*self._own, *self._watches) if not lists.listed.is_set()]

    async def resync(self, lane: Lane) -> None:
        """List everything, heal the caches, and look at every object.

        Raises:
            ApiError: a list broke.

        """
        for lists in (*self._own, *self._watches):
            await lists.list()
        self._sightings.prune()
        self.feed.everything(lane)

    def followed(self, path: str) -> None:
        """Kopf has begun anew to watch what has this path."""
        for lists in self._own:
            if lists.path == path:
                lists.wanted.set()

    async def resync_forever(self) -> None:
        """The first listing, then a full resync now and then, not at the same time as other operators'."""
        await self.first_listing()
        while True:
            await asyncio.sleep(self._settings.resync_seconds * random.uniform(0.9, 1.1))
            try:
                await self.resync(Lane.RESYNC)
            except ApiError as error:
                ERRORS.labels("resync").inc()
                log.warning("resync failed", extra={"error": str(error)})

    async def work(self) -> None:
        """One worker."""
        while True:
            key = await self.queue.get()
            started = time.perf_counter()
            try:
                well = await self._step(key)
            except ApiError as error:
                ERRORS.labels(f"step {key.kind} {error.status}").inc()
                if error.is_namespace_going:
                    wait = self._leave(key)
                    self.queue.done(key)
                else:
                    wait = self.queue.failed(key, at_least=error.retry_after or 0.0)
                expected = error.status in (404, 409) or error.is_namespace_going
                level = logging.INFO if expected else logging.WARNING
                log.log(level, "step failed", extra={"key": str(key), "error": str(error), "retry_in": wait})
            except Exception:
                wait = self.queue.failed(key)
                ERRORS.labels(f"step {key.kind} bug").inc()
                log.exception("step broke", extra={"key": str(key), "retry_in": wait})
            else:
                if well:
                    self.queue.done(key)
                else:
                    self.queue.failed(key)
            RECONCILE_SECONDS.labels(key.kind).observe(time.perf_counter() - started)

    async def _step(self, key: Key) -> bool:
        """One step for one object; returns whether the API server took everything."""
        kind = KIND_BY_NAME[key.kind]
        obj = self.cache[kind].get(key.namespace, key.name)
        if obj is None:
            self._observer.forget(key)
            self._pace.forget(key)
            self._taken.forget(key)
            if kind is POLICY_DEPLOYMENT:
                self._serving.forget(key)
            self.queue.forget(key)
            self._left.pop(key, None)
            return True
        uid, until = self._left.get(key, ("", 0.0))
        if uid == uid_of(obj) and time.monotonic() < until:
            self.queue.add_after(key, until - time.monotonic())
            return True
        now = datetime.now(UTC)
        plan = await self._decide(kind, obj, key, now)
        refused: str | None = None
        if plan.secrets:  # before all else, since the pods need it
            others_begin = kind is TRAINING_JOB and self.queue.waiting(Lane.NEW) > 0
            told, untold = (plan.occurrences, ()) if others_begin else ((), plan.occurrences)
            begun = replace(plan, status=None, occurrences=told)
            refused = await self._executor.execute(key, obj, begun, now)
            self.feed.pools_of(key.namespace, key.name, Lane.NEW)
            if refused is None and others_begin:
                # Nobody's pods before everybody's first children: what pods set in motion takes longer.
                self.queue.add(key, Lane.NEW)
                return True
            after = replace(plan, secrets=(), apply=(), delete=(), occurrences=untold)
            if refused is None:
                after = await self._decide(kind, obj, key, now)
                after = replace(after, occurrences=(*untold, *after.occurrences))
            plan = after
        plan = self._paced(key, plan)
        try:
            refused = await self._executor.execute(key, obj, plan, now) or refused
        finally:  # what was written before a failure changed the route as well
            if plan.amend:
                self._serving.servers.amended(uid_of(obj))
        if kind is POLICY_DEPLOYMENT and any(apply.kind is CONFIG_MAP for apply in plan.apply):
            self._serving.servers.hurry()
        if kind is POLICY_DEPLOYMENT and refused is None:  # else the next step has the same to tell
            self._serving.tell(obj, plan)
        if plan.status is not None:
            self._observer.progress_written[key] = now
            self._pace.wrote(key)
        if plan.requeue_after is not None:
            self.queue.add_after(key, plan.requeue_after)
        if refused is None:
            self._taken.forget(key)
            if self._observer.refused.pop(key, None) is not None:
                self.queue.add(key, Lane.CHANGE)
            return True
        self._observer.refused[key] = refused
        return False

    @cached_property
    def _serving(self) -> "Serving":
        """Made once it is needed."""
        from ratchet_operator.serving import Serving
        from ratchet_operator.waker import Waker

        self._serves.set()
        installation = self._settings.installation
        waker = Waker(self._settings.pod_ip, self._settings.waker_ports, self.feed.servers_said)
        return Serving(
            self._api, self.cache, self.feed, self._sightings, self._observer, installation, self._key, waker
        )

    async def _watch_servers(self) -> None:
        await self._serves.wait()
        await self._serving.run()

    def _leave(self, key: Key) -> float:
        """Leave an object alone whose namespace is being deleted, since nothing can be created there: what is
        to come is its end. Returns for how many seconds.
        """
        obj = self.cache[KIND_BY_NAME[key.kind]].get(key.namespace, key.name)
        if obj is not None:
            self._left[key] = uid_of(obj), time.monotonic() + NAMESPACE_SECONDS
            self.queue.add_after(key, NAMESPACE_SECONDS)
        return NAMESPACE_SECONDS

    def _paced(self, key: Key, plan: Plan) -> Plan:
        """The plan, where a status that comes too soon is put off: pods become ready one by one, a new object
        has nothing to say before its pods are asked for, and all children go before any status.
        """
        if plan.status is None:
            return plan
        is_new = bool(plan.apply) and key not in self._observer.progress_written
        if is_new:
            self._pace.begin(key)
        if plan.occurrences and not (is_new and self._pace.is_crowd()):
            return plan
        wait = self._pace.wait(key, others_begin=self.queue.waiting(Lane.NEW) > 0)
        if wait <= 0:
            return plan
        self.queue.add_after(key, wait)
        return replace(plan, status=None)

    async def _decide(self, kind: Kind, obj: Json, key: Key, now: datetime) -> Plan:
        if kind is TRAINING_JOB:
            return reconcile_job(obj, await self._observer.job(obj, key), now)
        if kind is POLICY_DEPLOYMENT:
            return await self._serving.decide(obj, key, now)
        return reconcile_pool(obj, await self._observer.pool(obj, key), now)

    def measure(self) -> None:
        """Set the gauges."""
        self.queue.measure()
        for name, store in self.cache.stores.items():
            OBJECTS.labels(name).set(len(store))


def _scopes(
    settings: Settings, kinds: Mapping[Kind, str | None]
) -> Iterator[tuple[Kind, str | None, str | None]]:
    """Each kind with each namespace in which to look for it, None for everywhere, and its selector."""
    for kind, selector in kinds.items():
        for namespace in settings.namespaces if kind.namespaced and settings.namespaces else (None,):
            yield kind, namespace, selector
