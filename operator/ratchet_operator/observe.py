"""Gathers what a reconcile step is told: from the caches, from Secrets' metadata, from trainers' answers."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from ratchet.api.v1alpha1 import RLTrainingJobSpec, RolloutPoolSpec, TrainerStatus
from ratchet_operator.apiserver import ApiServer
from ratchet_operator.build.context import JobContext
from ratchet_operator.cache import Cache
from ratchet_operator.drift import quantity
from ratchet_operator.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    JOB_LABEL,
    NETWORK_POLICY,
    NODE,
    POD,
    POOL_LABEL,
    ROLLOUT_POOL,
    SECRET,
    SERVICE,
    TRAINING_JOB,
    WORKER_SET,
    Json,
    Key,
    Kind,
    controller_of,
    label_value,
    name_of,
    namespace_of,
    status_of,
    sub,
    uid_of,
    version_of,
)
from ratchet_operator.policies.waiting import is_ready
from ratchet_operator.reconcile.job import JobSeen, user_secrets
from ratchet_operator.reconcile.pool import PoolSeen
from ratchet_operator.settings import Installation
from ratchet_operator.specs import parsed

TRUST_IN_DOUBT = 10.0
TRUST_ABSENT = 2.0


@dataclass(frozen=True, slots=True)
class _Sighting:
    """UIDs of a Secret and of its controller, None where there is none, and when that was so."""

    uid: str | None
    owner: str | None
    at: float


class SecretSightings:
    """Which Secrets are there. They can't be watched (no list or watch is granted), so they are looked up by
    metadata alone, and looked up again after a while: soon where something does not start.
    """

    def __init__(self, api: ApiServer, trust_present: float = 240.0) -> None:
        self._api = api
        self._trust_present = trust_present
        self._seen: dict[tuple[str, str], _Sighting] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def put(self, namespace: str, name: str, obj: Json | None) -> None:
        """Remember what was seen."""
        self._seen[namespace, name] = _sighting(obj, asyncio.get_running_loop().time())

    def forget(self, namespace: str, name: str) -> None:
        """Look again next time."""
        self._seen.pop((namespace, name), None)

    def prune(self) -> None:
        """Forget what is too old to be trusted: nobody has asked for it since."""
        oldest = asyncio.get_running_loop().time() - self._trust_present
        self._seen = {at: seen for at, seen in self._seen.items() if seen.at >= oldest}

    async def uid(self, namespace: str, name: str, owner_uid: str | None, in_doubt: bool) -> str | None:
        """UID of the Secret; None where it is not, or belongs to another owner than the one asked for."""
        at, now = (namespace, name), asyncio.get_running_loop().time()
        seen = self._seen.get(at, _Sighting(None, None, float("-inf")))
        trust = TRUST_ABSENT if seen.uid is None else TRUST_IN_DOUBT if in_doubt else self._trust_present
        if now - seen.at > trust:
            found = _sighting(await self._api.get(SECRET, namespace, name, metadata_only=True), now)
            seen = self._seen.get(at, found)
            if seen.at <= now:  # else it was put while the question was on its way
                seen = self._seen[at] = found
        return seen.uid if owner_uid in (None, seen.owner) else None


def _sighting(obj: Json | None, at: float) -> _Sighting:
    if obj is None:
        return _Sighting(None, None, at)
    return _Sighting(uid_of(obj), (controller_of(obj) or {}).get("uid"), at)


def most_devices_on_a_node(nodes: list[Json]) -> Mapping[str, int]:
    """Of each extended resource, the largest number that any one node has."""
    most: dict[str, int] = {}
    for node in nodes:
        for resource, amount in sub(node, "status", "allocatable").items():
            count = quantity(amount)
            if "/" in resource and count is not None:
                most[resource] = max(most.get(resource, 0), int(count))
    return most


class Observer:
    """Makes `JobSeen` and `PoolSeen`.

    Args:
        trainer_of: the newest answer of the trainer of the job with a UID.
        trainers_asked: whether every trainer was asked once.

    Attributes:
        oldest_news: resourceVersion of the first whole list of jobs; what is newer was made later.
        refused: what the API server said about a child that it would not take.
        progress_written: when this operator last wrote an object's status.

    """

    def __init__(
        self,
        api: ApiServer,
        cache: Cache,
        sightings: SecretSightings,
        installation: Installation,
        trainer_of: Callable[[str], TrainerStatus | None],
        trainers_asked: Callable[[], bool],
    ) -> None:
        self._api = api
        self._cache = cache
        self._sightings = sightings
        self._installation = installation
        self._trainer_of = trainer_of
        self._trainers_asked = trainers_asked
        self._met: dict[Key, str] = {}
        self.oldest_news: int | None = None
        self.refused: dict[Key, str] = {}
        self.progress_written: dict[Key, datetime] = {}

    def forget(self, key: Key) -> None:
        """The object is gone."""
        self._met.pop(key, None)
        self.refused.pop(key, None)
        self.progress_written.pop(key, None)

    def _is_newborn(self, job: Json, key: Key) -> bool:
        """Whether a job was made under our eyes and no step was tried for it: then it has no children, and we
        need not ask. Should it have some after all, their creation is refused, and the next step asks.
        """
        known = self._met.get(key) == uid_of(job)
        self._met[key] = uid_of(job)
        if known or status_of(job):  # an old job that was edited just now has a new version too
            return False
        return self.oldest_news is not None and version_of(job) > self.oldest_news

    def named(self, kind: Kind, namespace: str, label: str, value: str) -> dict[str, Json]:
        """Objects of a kind that a label finds, by name; none where the kind is not watched."""
        if kind not in self._cache:
            return {}
        return {name_of(obj): obj for obj in self._cache[kind].labelled(namespace, label, value)}

    async def config_map(self, namespace: str, name: str, *, newborn: bool = False) -> Json | None:
        """The cached ConfigMap; where the cache has none, a look at the truth, since it holds a ledger.

        Args:
            namespace: of its owner.
            name: of the ConfigMap.
            newborn: its owner was made just now, so that it can't be there.

        """
        live = self._cache[CONFIG_MAP].get(namespace, name)
        if live is None and not newborn:
            live = await self._api.get(CONFIG_MAP, namespace, name)
            if live is not None:
                self._cache[CONFIG_MAP].put(live)
        return live

    async def _secrets(
        self, context: JobContext, in_doubt: bool, newborn: bool = False
    ) -> dict[str, str | None]:
        names = set(user_secrets(context)) | {context.redis_secret_name}
        seen: dict[str, str | None] = {}
        for name in sorted(names):
            owner = context.uid if context.is_redis_managed and name == context.redis_name else None
            if newborn and owner is not None:
                seen[name] = None
                continue
            seen[name] = await self._sightings.uid(context.namespace, name, owner, in_doubt)
        return seen

    async def job(self, job: Json, key: Key) -> JobSeen:
        """What is seen around a job."""
        bare = JobSeen(self._installation)
        try:
            spec = parsed(RLTrainingJobSpec, job)
        except ValidationError:
            return bare
        context = JobContext.of(job, spec, self._installation)
        namespace, label = context.namespace, label_value(context.name)
        pods = self._cache[POD].labelled(namespace, JOB_LABEL, label)
        in_doubt = not all(is_ready(pod) for pod in pods)
        newborn = self._is_newborn(job, key)
        config_map, secrets = await asyncio.gather(
            self.config_map(namespace, context.config_name, newborn=newborn),
            self._secrets(context, in_doubt, newborn),
        )
        return JobSeen(
            installation=self._installation,
            config_map=config_map,
            deployments=self.named(DEPLOYMENT, namespace, JOB_LABEL, label),
            services=self.named(SERVICE, namespace, JOB_LABEL, label),
            network_policies=self.named(NETWORK_POLICY, namespace, JOB_LABEL, label),
            pool=self._cache[ROLLOUT_POOL].get(namespace, context.pool_name),
            pods=tuple(pods),
            secrets=secrets,
            devices=self._cache.devices if NODE in self._cache else None,
            trainer=self._trainer_of(context.uid),
            trainers_asked=self._trainers_asked(),
            refused=self.refused.get(key),
            progress_written=self.progress_written.get(key),
            jobs=len(self._cache[TRAINING_JOB]),
            kept=self._cache.kept(namespace, context.uid),
        )

    async def pool(self, pool: Json, key: Key) -> PoolSeen:
        """What is seen around a pool."""
        namespace, label = namespace_of(pool), label_value(name_of(pool))
        job: Json | None = None
        config_map: Json | None = None
        secrets: dict[str, str | None] = {}
        trainer: TrainerStatus | None = None
        pods = self._cache[POD].labelled(namespace, POOL_LABEL, label)
        try:
            spec = parsed(RolloutPoolSpec, pool)
            job = self._cache[TRAINING_JOB].get(namespace, spec.training_job_ref.name)
            if job is not None:
                job_spec = parsed(RLTrainingJobSpec, job)
                context = JobContext.of(job, job_spec, self._installation)
                in_doubt = not all(is_ready(pod) for pod in pods)
                config_map, secrets = await asyncio.gather(
                    self.config_map(namespace, context.config_name), self._secrets(context, in_doubt)
                )
                trainer = self._trainer_of(context.uid)
        except ValidationError:
            pass  # the step validates again, and says what is wrong
        return PoolSeen(
            installation=self._installation,
            job=job,
            config_map=config_map,
            worker_sets=self.named(WORKER_SET, namespace, POOL_LABEL, label),
            pods=tuple(pods),
            secrets=secrets,
            trainer=trainer,
            refused=self.refused.get(key),
            progress_written=self.progress_written.get(key),
            jobs=len(self._cache[TRAINING_JOB]),
        )
