"""The one path that does all the work: key -> observe -> reconcile -> execute."""

import asyncio
import logging
import random
import time
from datetime import UTC, datetime

from ratchet_operator.apiserver import ApiError, ApiServer
from ratchet_operator.cache import Cache
from ratchet_operator.execute import Executor
from ratchet_operator.feed import Feed
from ratchet_operator.kinds import KIND_BY_NAME, TRAINING_JOB, Json, Key, Kind
from ratchet_operator.metrics import ERRORS, OBJECTS, RECONCILE_SECONDS
from ratchet_operator.observe import Observer, SecretSightings
from ratchet_operator.plan import Plan
from ratchet_operator.reconcile.job import reconcile_job
from ratchet_operator.reconcile.pool import reconcile_pool
from ratchet_operator.settings import Settings
from ratchet_operator.trainers import TrainerWatch
from ratchet_operator.transport import watched
from ratchet_operator.workqueue import Lane, WorkQueue

log = logging.getLogger("ratchet.controller")


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
        sightings = SecretSightings(api, 0.8 * settings.resync_seconds)
        self._observer = Observer(api, self.cache, sightings, settings.installation, self.trainers.answer)
        self._executor = Executor(api, self.cache, sightings, settings.pod_name)
        self.synced = False

    async def resync(self, lane: Lane) -> None:
        """List everything, heal the caches, and look at every object."""
        for kind, selector in self._kinds.items():
            await self._relist(kind, selector)
        self.feed.everything(lane)
        self.synced = True

    async def _relist(self, kind: Kind, selector: str | None) -> None:
        for namespace in (
            self._settings.namespaces if kind.namespaced and self._settings.namespaces else (None,)
        ):
            listed, version = await self._api.list(kind, namespace, selector)
            for obj in listed:  # items of a list carry neither
                obj.setdefault("apiVersion", kind.api_version)
                obj.setdefault("kind", kind.kind)
            missed = self.feed.relisted(kind, listed, version, (namespace,) if namespace else ())
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
                wait = self.queue.failed(key)
                ERRORS.labels(f"step {key.kind} {error.status}").inc()
                expected = error.status in (404, 409) or "being terminated" in error.message
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
            return True
        now = datetime.now(UTC)
        plan = await self._decide(kind, obj, key, now)
        refused = await self._executor.execute(key, obj, plan, now)
        if plan.status is not None:
            self._observer.progress_written[key] = now
        if plan.secrets:
            self.queue.add(key, Lane.CHANGE)
            self.feed.pools_of(key.namespace, key.name, Lane.CHANGE)
        if plan.requeue_after is not None:
            self.queue.add_after(key, plan.requeue_after)
        if refused is None:
            if self._observer.refused.pop(key, None) is not None:
                self.queue.add(key, Lane.CHANGE)
            return True
        self._observer.refused[key] = refused
        return False

    async def _decide(self, kind: Kind, obj: Json, key: Key, now: datetime) -> Plan:
        if kind is TRAINING_JOB:
            return reconcile_job(obj, await self._observer.job(obj, key), now)
        return reconcile_pool(obj, await self._observer.pool(obj, key), now)

    def measure(self) -> None:
        """Set the gauges."""
        self.queue.measure()
        for name, store in self.cache.stores.items():
            OBJECTS.labels(name).set(len(store))
