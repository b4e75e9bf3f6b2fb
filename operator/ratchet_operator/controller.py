"""The one path that does all the work: key -> observe -> reconcile -> execute."""

import asyncio
import logging
import random
import time
from dataclasses import replace
from datetime import UTC, datetime

from ratchet_operator.apiserver import ApiError, ApiServer
from ratchet_operator.cache import Cache
from ratchet_operator.execute import Executor
from ratchet_operator.feed import Feed
from ratchet_operator.kinds import KIND_BY_NAME, ROLLOUT_POOL, TRAINING_JOB, Json, Key, Kind, uid_of
from ratchet_operator.metrics import ERRORS, OBJECTS, RECONCILE_SECONDS, WATCH_MISSED
from ratchet_operator.observe import Observer, SecretSightings
from ratchet_operator.plan import Plan
from ratchet_operator.reconcile.job import reconcile_job
from ratchet_operator.reconcile.pool import reconcile_pool
from ratchet_operator.settings import Settings
from ratchet_operator.trainers import TrainerWatch
from ratchet_operator.transport import watched
from ratchet_operator.workqueue import Lane, WorkQueue

log = logging.getLogger("ratchet.controller")


STATUS_SECONDS = 2.0  # between two writes of one object's status
BUSY_STATUS_SECONDS = 5.0  # the same while others wait for their first children
NAMESPACE_SECONDS = 60.0  # until something is tried again in a namespace that was being deleted
SETTLE_SECONDS = 3.0  # a watch lists many objects; they are answered by one look


class Controller:
    """Caches, queue and workers of one leader."""

    def __init__(self, settings: Settings, api: ApiServer) -> None:
        self._settings = settings
        self._api = api
        self._kinds = watched(settings)
        self.cache = Cache(self._kinds)
        self.queue = WorkQueue(time.monotonic)
        self.feed = Feed(self.cache, self.queue)
        self.trainers = TrainerWatch(self.cache, settings.status_interval, self.feed.trainer_said)
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
        self._executor = Executor(api, self.feed, self._sightings, settings.pod_name)
        self._left: dict[Key, tuple[str, float]] = {}
        self.synced = False

    async def resync(self, lane: Lane) -> None:
        """List everything, heal the caches, and look at every object."""
        for kind, selector in self._kinds.items():
            await self._relist(kind, selector)
        self._sightings.prune()
        self.feed.everything(lane)
        self.synced = True

    async def _relist(self, kind: Kind, selector: str | None) -> None:
        for namespace in (
            self._settings.namespaces if kind.namespaced and self._settings.namespaces else (None,)
        ):
            there: set[str] = set()
            missed, version = 0, 0
            async for page, of_list in self._api.pages(kind, namespace, selector):
                version = of_list
                for obj in page:  # items of a list carry neither
                    obj.setdefault("apiVersion", kind.api_version)
                    obj.setdefault("kind", kind.kind)
                    missed += self.feed.seen(kind, obj)
                    there.add(uid_of(obj))
            if kind is TRAINING_JOB and self._observer.oldest_news is None:
                self._observer.oldest_news = version
            missed += self.feed.relisted(kind, there, version, (namespace,) if namespace else ())
            WATCH_MISSED.labels(kind.kind).inc(missed)
            if missed and self.synced:
                log.warning(
                    "a resync found changes that no watch had told", extra={"kind": kind.kind, "n": missed}
                )

    async def relist_forever(self) -> None:
        """After each list of a watch, learn what went away between our last look and it. The first is made
        whether a watch had something to list or not.
        """
        self.feed.relist_wanted.set()
        while True:
            await self.feed.relist_wanted.wait()
            await asyncio.sleep(SETTLE_SECONDS)
            self.feed.relist_wanted.clear()
            try:
                for kind, selector in self._kinds.items():
                    await self._relist(kind, selector)
            except ApiError as error:
                ERRORS.labels("relist").inc()
                log.warning("relist failed", extra={"error": str(error)})
                self.feed.relist_wanted.set()

    async def resync_forever(self) -> None:
        """A full resync now and then, not at the same time as other operators'."""
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
        if plan.secrets:  # before all else, since the pods need it; then the same step goes on
            refused = await self._executor.execute(key, obj, replace(plan, status=None, occurrences=()), now)
            after = replace(plan, secrets=(), apply=(), delete=())
            if refused is None:
                after = await self._decide(kind, obj, key, now)
                after = replace(after, occurrences=(*plan.occurrences, *after.occurrences))
            plan = after
            self.feed.pools_of(key.namespace, key.name, Lane.NEW)
        plan = self._paced(kind, key, plan, now)
        refused = await self._executor.execute(key, obj, plan, now) or refused
        if plan.status is not None:
            self._observer.progress_written[key] = now
        if plan.requeue_after is not None:
            self.queue.add_after(key, plan.requeue_after)
        if refused is None:
            if self._observer.refused.pop(key, None) is not None:
                self.queue.add(key, Lane.CHANGE)
            return True
        self._observer.refused[key] = refused
        return False

    def _leave(self, key: Key) -> float:
        """Leave an object alone whose namespace is being deleted, since nothing can be created there: what is
        to come is its end. Returns for how many seconds.
        """
        obj = self.cache[KIND_BY_NAME[key.kind]].get(key.namespace, key.name)
        if obj is not None:
            self._left[key] = uid_of(obj), time.monotonic() + NAMESPACE_SECONDS
            self.queue.add_after(key, NAMESPACE_SECONDS)
        return NAMESPACE_SECONDS

    def _paced(self, kind: Kind, key: Key, plan: Plan, now: datetime) -> Plan:
        """The plan, where a status that comes too soon is put off: pods become ready one by one, a new pool
        has nothing to say before its workers are asked for, and all children go before any status.
        """
        if plan.status is None:
            return plan
        busy = self.queue.waiting(Lane.NEW) >= self._settings.workers
        written = self._observer.progress_written.get(key)
        if written is None and plan.apply and (busy or kind is ROLLOUT_POOL):
            written = self._observer.progress_written[key] = now
        elif written is None or plan.occurrences:
            return plan
        apart = BUSY_STATUS_SECONDS if busy else STATUS_SECONDS
        wait = min(apart, apart - (now - written).total_seconds())  # also where the clock was set back
        if wait <= 0:
            return plan
        self.queue.add_after(key, wait)
        return replace(plan, status=None)

    async def _decide(self, kind: Kind, obj: Json, key: Key, now: datetime) -> Plan:
        if kind is TRAINING_JOB:
            return reconcile_job(obj, await self._observer.job(obj, key), now)
        return reconcile_pool(obj, await self._observer.pool(obj, key), now)

    def measure(self) -> None:
        """Set the gauges."""
        self.queue.measure()
        for name, store in self.cache.stores.items():
            OBJECTS.labels(name).set(len(store))
