"""`ratchet-operator`: elect a leader, fill the caches, then work until a signal or the loss of the Lease."""

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Coroutine
from typing import Any

import uvloop
from kubernetes.aio.leaderelection.electionconfig import Config

from ratchet_operator import logs, transport
from ratchet_operator.apiserver import ApiError, ApiServer, Bucket, load_configuration
from ratchet_operator.controller import Controller
from ratchet_operator.kinds import API_VERSION, POLICY_DEPLOYMENT, ROLLOUT_POOL, TRAINING_JOB, items
from ratchet_operator.leader import (
    LEASE_SECONDS,
    RENEW_DEADLINE,
    RETRY_PERIOD,
    Election,
    Lock,
    RoundTrip,
)
from ratchet_operator.metrics import LEADER, REGISTRY
from ratchet_operator.settings import Settings
from ratchet_operator.web import Web

log = logging.getLogger("ratchet.main")

LONGEST_SILENCE = 60.0
ENDED_ITSELF = 1  # a kubelet starts it again whatever the code, and people look at it
BAD_SETTINGS = 78


class Operator:
    """The process: what it does, and what it answers about itself."""

    def __init__(self, settings: Settings, api: ApiServer) -> None:
        self._settings = settings
        self._api = api
        # Whatever waits for a connection or an answer, the Lease does not wait behind it.
        self._of_lease = ApiServer(api.configuration, api.bucket)
        self._lock = Lock(self._of_lease, settings.pod_namespace, settings.pod_name)
        self._round_trip = RoundTrip(api, settings.pod_namespace, settings.pod_name)
        self._stop = asyncio.Event()
        self._leading: asyncio.Task[None] | None = None
        self._broke = False
        self.controller = Controller(settings, api)

    def trouble(self) -> str | None:
        """What is wrong; None when nothing is."""
        silence = self._round_trip.silence()
        if silence is not None and silence > LONGEST_SILENCE:
            return f"no renewal of the Lease came back on its watch for {silence:.0f} s"
        return None

    def waiting_for(self) -> str | None:
        """What a leader waits for before it works; a standby is ready."""
        unlisted = self.controller.unlisted()
        if self._round_trip.leading_since is None or not unlisted:
            return None
        return f"not listed yet: {', '.join(unlisted)}"

    async def run(self) -> int:
        """Run until a signal, the loss of the Lease or trouble; the exit code is 0 after a signal alone."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        election = Election(
            Config(
                self._lock,
                lease_duration=LEASE_SECONDS,
                renew_deadline=RENEW_DEADLINE,
                retry_period=RETRY_PERIOD,
                onstarted_leading=self._lead,
                onstopped_leading=self._lost,
            )
        )
        self._api.may_write = election.holds
        port = self._settings.port
        registries = (REGISTRY, self.controller.objects)
        web = Web(port, self.trouble, self.waiting_for, self.controller.measure, registries)
        async with self._of_lease, web:
            log.info(
                "started",
                extra={"identity": self._settings.pod_name, "namespaces": self._settings.namespaces},
            )
            tasks: list[asyncio.Task[Any]] = [
                asyncio.create_task(election.run(), name="election"),
                asyncio.create_task(self._round_trip.run(), name="round trip"),
                asyncio.create_task(self._stop.wait(), name="stop"),
            ]
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            stopped = self._stop.is_set()
            election.resign()
            # Nothing may be written any more once the Lease is given back. The election starts the leading in
            # a task of its own.
            ending = [*pending, *([self._leading] if self._leading is not None else [])]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            for task in done:
                if task.exception() is not None:
                    log.error("broke", extra={"task": task.get_name(), "error": repr(task.exception())})
                    return ENDED_ITSELF
            if stopped:
                await self._lock.release()
            return 0 if stopped and not self._broke else ENDED_ITSELF

    async def _lost(self) -> None:
        log.error("the Lease is lost; another operator may lead")

    async def _lead(self) -> None:
        """Everything that a leader does; when any part of it ends, the process does."""
        self._leading = asyncio.current_task()
        LEADER.set(1)
        self._round_trip.leading_since = asyncio.get_running_loop().time()
        log.info("leading")
        parts: list[Coroutine[Any, Any, None]] = []
        try:
            await self._wait_for_crds()
            controller = self.controller
            # Kopf comes last: at its end it waits for every task that is younger than itself.
            parts = [
                *controller.parts(),
                transport.run(self._settings, controller.feed, self._api.configuration, controller.followed),
            ]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(part) for part in parts]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
            self._stop.set()  # the watches have heard a signal
        except* asyncio.CancelledError:
            raise
        except* Exception as errors:
            log.exception("leading broke", extra={"errors": repr(errors.exceptions)})
            self._broke = True
            self._stop.set()
        finally:
            LEADER.set(0)

    async def _wait_for_crds(self) -> None:
        while True:
            with contextlib.suppress(ApiError):
                found = await self._api.request("GET", f"/apis/{API_VERSION}")
                names = {item.get("name") for item in items(found, "resources")}
                if {TRAINING_JOB.plural, ROLLOUT_POOL.plural, POLICY_DEPLOYMENT.plural} <= names:
                    return
            log.warning("waiting for the CRDs of ratchet.dev")
            await asyncio.sleep(2)


async def serve(settings: Settings) -> int:
    """Connect and run."""
    configuration = await load_configuration()
    bucket = Bucket(settings.writes_per_second, 2 * settings.writes_per_second, time.monotonic)
    async with ApiServer(configuration, bucket) as api:
        return await Operator(settings, api).run()


def main() -> None:
    """Entry point."""
    try:
        settings = Settings.from_environ()
    except ValueError as error:
        print(f"ratchet-operator: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(BAD_SETTINGS)
    logs.configure(settings.log_level)
    sys.exit(uvloop.run(serve(settings)))
