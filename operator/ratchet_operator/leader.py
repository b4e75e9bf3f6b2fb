"""Leader election by a Lease, with the protocol of `kubernetes.aio.leaderelection`.

Its own LeaseLock lets a broken connection escape from the renewal loop, and never gives the Lease back;
this lock reads and writes plain JSON, answers every failure as a failure, and can be released. A leader that
can't renew stops RETRY_PERIOD + RENEW_DEADLINE seconds after it began its last renewal. Others wait for
LEASE_SECONDS from when they saw that renewal, which is later.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.baselock import BaseLock

from ratchet_operator.apiserver import ApiError, ApiServer
from ratchet_operator.kinds import LEASE, Json, spec_of

log = logging.getLogger("ratchet.leader")

LEASE_NAME = "ratchet-operator"
LEASE_SECONDS = 15
RENEW_DEADLINE = 10
RETRY_PERIOD = 3
_WIRE = "%Y-%m-%dT%H:%M:%S.%fZ"


class Lock(BaseLock):
    """A Lease as a lock."""

    def __init__(self, api: ApiServer, namespace: str, identity: str) -> None:
        super().__init__(LEASE_NAME, namespace, identity)
        self._api = api
        self._live: Json | None = None
        self._theirs_until = 0.0

    async def get(self, name: str, namespace: str) -> tuple[bool, Any]:
        """The record, or the failure as the election expects it."""
        try:
            self._live = await self._api.get(LEASE, namespace, name)
        except ApiError as error:
            return False, ApiException(status=error.status, reason=str(error))
        if self._live is None:
            missing = ApiException(status=404, reason="Not Found")
            missing.body = '{"code": 404}'
            return False, missing
        spec = spec_of(self._live)
        anothers = spec.get("holderIdentity") not in (None, "", self.identity)
        self._theirs_until = asyncio.get_running_loop().time() + LEASE_SECONDS if anothers else 0.0
        duration = spec.get("leaseDurationSeconds")
        return True, LeaderElectionRecord(
            spec.get("holderIdentity") or None,
            str(duration) if duration else None,
            spec.get("acquireTime"),
            spec.get("renewTime"),
        )

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        """Create the Lease, held by us. One that somebody deleted is its holder's for as long as it was."""
        if asyncio.get_running_loop().time() < self._theirs_until:
            return False
        lease: Json = {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"name": name, "namespace": namespace},
            "spec": self._spec(election_record),
        }
        try:
            self._live = await self._api.request("POST", LEASE.path(namespace), body=lease)
        except ApiError as error:
            log.warning("the Lease can't be created", extra={"error": str(error)})
            return False
        return True

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        """Take or renew the Lease; the resourceVersion that was read must still stand."""
        if self._live is None:
            return False
        lease = {**self._live, "spec": {**spec_of(self._live), **self._spec(updated_record)}}
        try:
            self._live = await self._api.request("PUT", LEASE.path(namespace, name), body=lease)
        except ApiError as error:
            log.warning("the Lease can't be renewed", extra={"error": str(error)})
            return False
        return True

    async def release(self) -> None:
        """Give the Lease back, so that the next one need not wait."""
        if self._live is None or spec_of(self._live).get("holderIdentity") != self.identity:
            return
        spec = {**spec_of(self._live), "holderIdentity": "", "leaseDurationSeconds": 1}
        try:
            await self._api.request(
                "PUT", LEASE.path(self.namespace, self.name), body={**self._live, "spec": spec}
            )
        except ApiError as error:
            log.warning("the Lease can't be given back", extra={"error": str(error)})

    def _spec(self, record: LeaderElectionRecord) -> Json:
        now = datetime.now(UTC).strftime(_WIRE)
        held = spec_of(self._live)
        same = held.get("holderIdentity") == self.identity
        return {
            "holderIdentity": record.holder_identity,
            "leaseDurationSeconds": LEASE_SECONDS,
            "acquireTime": held.get("acquireTime") if same and held.get("acquireTime") else now,
            "renewTime": now,
        }


def since_boot() -> float:
    """Monotonic seconds, those of a suspended machine too where the platform counts them."""
    clock: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class Election(LeaderElection):
    """Gives up in time also where the API server says nothing at all, or says it late.

    The library looks at its deadline only between two tries, and a try may wait for an answer for longer than
    the Lease lasts: by then another one leads.

    Args:
        election_config: the lock, and how long everything takes.
        clock: monotonic seconds, which go on while the process or the machine stands still.

    """

    def __init__(self, election_config: Config, clock: Callable[[], float] = since_boot) -> None:
        super().__init__(election_config)
        self._clock = clock
        self._renewed = float("-inf")
        """When the try began that last made us the holder: what others see of it, they see later."""

    def holds(self) -> bool:
        """Whether nobody else can lead yet. A process that stood still may not have noticed."""
        return self._left() > 0

    def resign(self) -> None:
        """Hold the Lease no more, whatever its record says."""
        self._renewed = float("-inf")

    def _left(self) -> float:
        config = self.election_config
        return self._renewed + config.retry_period + config.renew_deadline - self._clock()

    async def try_acquire_or_renew(self) -> bool:
        """Whether we hold the Lease now."""
        begun = self._clock()
        held = await super().try_acquire_or_renew()
        if held:
            self._renewed = begun
        return held

    async def renew_loop(self) -> None:
        """Renew until that fails for too long, or another one holds the Lease."""
        config = self.election_config
        while True:
            try:
                async with asyncio.timeout(self._left()):
                    await asyncio.sleep(config.retry_period)
                    while not await self.try_acquire_or_renew():
                        if self._is_anothers():
                            return
                        await asyncio.sleep(config.retry_period)
            except TimeoutError:
                return

    def _is_anothers(self) -> bool:
        seen = self.observed_record
        return seen is not None and seen.holder_identity not in (None, self.election_config.lock.identity)


class RoundTrip:
    """Proof of life: the renewals that we write must come back on a watch."""

    def __init__(self, api: ApiServer, namespace: str, identity: str) -> None:
        self._api, self._namespace, self._identity = api, namespace, identity
        self.leading_since: float | None = None
        self._seen_at = 0.0

    def silence(self) -> float | None:
        """Seconds since a renewal of ours came back; None while we do not lead."""
        if self.leading_since is None:
            return None
        return asyncio.get_running_loop().time() - max(self._seen_at, self.leading_since)

    async def run(self) -> None:
        """Watch the Lease for ever."""
        while True:
            try:
                named = self._api.watch(LEASE, self._namespace, fields=f"metadata.name={LEASE_NAME}")
                async for event in named:
                    if spec_of(event.get("object")).get("holderIdentity") == self._identity:
                        self._seen_at = asyncio.get_running_loop().time()
            except ApiError as error:
                log.warning("the watch of the Lease broke", extra={"error": str(error)})
            await asyncio.sleep(1)
