"""Asks trainers how they are. One that can't be asked is a value (None), not an error."""

import asyncio
import logging
from collections.abc import Callable

import aiohttp
from pydantic import ValidationError

from ratchet.api.v1alpha1 import TrainerStatus
from ratchet_operator.asking import get, url_of
from ratchet_operator.build.trainer import CONTAINER, PORT
from ratchet_operator.cache import Cache
from ratchet_operator.kinds import (
    COMPONENT_LABEL,
    JOB_LABEL,
    JOB_UID_LABEL,
    POD,
    TRAINING_JOB,
    Json,
    Key,
    controller_of,
    is_deleting,
    label_value,
    labels_of,
    name_of,
    namespace_of,
    status_of,
    uid_of,
)
from ratchet_operator.metrics import POLLS_FAILED
from ratchet_operator.policies.waiting import is_ready
from ratchet_operator.sparing import sparing

log = logging.getLogger("ratchet.trainers")

TIMEOUT = aiohttp.ClientTimeout(total=1.0)
AT_ONCE = 32
MISSES_FORGIVEN = 5
SECONDS_PER_TRAINER = 0.01
LONGEST_ANSWER = 256 * 1024  # bytes; a thousand pools take a tenth


class TrainerWatch:
    """The newest answer of every trainer.

    Args:
        changed: told the namespace, name and UID of a job whose trainer says something new.

    """

    def __init__(self, cache: Cache, interval: float, changed: Callable[[str, str], None]) -> None:
        self._cache = cache
        self._interval = interval
        self._changed = changed
        self._answers: dict[str, TrainerStatus] = {}
        self._misses: dict[str, int] = {}
        self._round = 0
        self._at_once = asyncio.Semaphore(AT_ONCE)

    def answer(self, uid: str) -> TrainerStatus | None:
        """The newest answer of the trainer of a job; None where it can't be asked."""
        return self._answers.get(uid)

    def all_asked(self) -> bool:
        """Whether every trainer that was there at the start was asked."""
        return self._round > 0

    async def run(self) -> None:
        """Ask for ever."""
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
            pods: dict[str, tuple[Key, str]] = {}
            seen = -1
            while True:
                if seen != self._cache[POD].changes:
                    seen = self._cache[POD].changes
                    pods = await self._trainers()
                for uid in (self._answers.keys() | self._misses.keys()) - pods.keys():
                    self._answers.pop(uid, None)
                    self._misses.pop(uid, None)
                await asyncio.gather(
                    *(self._ask(session, uid, *pods[uid]) for uid in pods if self._is_due(uid))
                )
                self._round += 1
                await asyncio.sleep(max(self._interval, SECONDS_PER_TRAINER * len(pods)))

    def _is_due(self, uid: str) -> bool:
        """Every round; more and more rarely where nobody has answered for long."""
        return self._round % 2 ** min(4, max(0, self._misses.get(uid, 0) - MISSES_FORGIVEN)) == 0

    async def _trainers(self) -> dict[str, tuple[Key, str]]:
        """Job by UID, and the address of its trainer."""
        found: dict[str, tuple[Key, str]] = {}
        for number, job in enumerate(self._cache[TRAINING_JOB]):
            if number % 50 == 0:
                await asyncio.sleep(0)  # a thousand of them must not keep an edit waiting
            for pod in self._pods(job):
                address = status_of(pod).get("podIP")
                if address and is_ready(pod) and not is_deleting(pod):
                    found[uid_of(job)] = Key(TRAINING_JOB.kind, namespace_of(job), name_of(job)), address
        return found

    def _pods(self, job: Json) -> list[Json]:
        pods = self._cache[POD].labelled(namespace_of(job), JOB_LABEL, label_value(name_of(job)))
        own = {COMPONENT_LABEL: CONTAINER, JOB_UID_LABEL: uid_of(job)}
        return [pod for pod in pods if own.items() <= labels_of(pod).items() and controller_of(pod)]

    async def _ask(self, session: aiohttp.ClientSession, uid: str, job: Key, address: str) -> None:
        """One question. What one says, which may be anybody's image, must not end those to all others."""
        with sparing(f"ask {TRAINING_JOB.kind}", f"{job.namespace}/{job.name}"):
            await self._hear(session, uid, job, address)

    async def _hear(self, session: aiohttp.ClientSession, uid: str, job: Key, address: str) -> None:
        async with self._at_once:
            body = await get(session, f"{url_of(address, PORT)}/status", LONGEST_ANSWER)
        answer = _parse(body, uid) if body is not None else None
        before = self._answers.get(uid)
        if answer is None:
            self._misses[uid] = self._misses.get(uid, 0) + 1
            POLLS_FAILED.labels("trainer").inc()
            if before is not None and self._misses[uid] > MISSES_FORGIVEN:
                del self._answers[uid]
                self._changed(job.namespace, job.name)
            return
        self._misses.pop(uid, None)
        self._answers[uid] = answer
        if before is None or not _same(before, answer):
            self._changed(job.namespace, job.name)


def _parse(body: bytes, uid: str) -> TrainerStatus | None:
    """The answer, where it is one and is about this job."""
    try:
        answer = TrainerStatus.model_validate_json(body)
    except ValidationError as error:
        log.warning("a trainer's answer can't be read", extra={"job_uid": uid, "error": str(error)[:500]})
        return None
    return answer if answer.uid == uid else None


def _same(one: TrainerStatus, other: TrainerStatus) -> bool:
    """Equal but for time passing."""
    return one.model_copy(update={"active_seconds": 0}) == other.model_copy(update={"active_seconds": 0})
