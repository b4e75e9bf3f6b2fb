"""All that PolicyDeployments need of the process. numpy comes with it, which an operator of jobs alone
does not hold.
"""

import asyncio
import base64
import logging
from collections.abc import Iterable, Mapping
from datetime import datetime

import aiohttp
from pydantic import ValidationError

from ratchet.api.v1alpha1 import PolicyDeploymentSpec
from ratchet_operator.adminkey import AdminKey
from ratchet_operator.apiserver import ApiError, ApiServer
from ratchet_operator.build.serving import PORT, ServingContext
from ratchet_operator.build.waking import Door, door_name
from ratchet_operator.cache import Cache
from ratchet_operator.feed import Feed
from ratchet_operator.kinds import (
    AUTOSCALER,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    ENDPOINT_SLICE,
    NETWORK_POLICY,
    POD,
    POLICY_DEPLOYMENT,
    REVISION_LABEL,
    SECRET,
    SERVICE,
    SERVING_LABEL,
    TRAINING_JOB,
    Json,
    Key,
    Kind,
    label_value,
    name_of,
    namespace_of,
    status_of,
    sub,
    uid_of,
)
from ratchet_operator.observe import Observer, SecretSightings
from ratchet_operator.plan import Occurrence, Plan
from ratchet_operator.policies.progress import seconds_until_due
from ratchet_operator.policies.waiting import is_ready
from ratchet_operator.reconcile.serving import reconcile_serving, secrets_of
from ratchet_operator.reconcile.servingseen import Heard, ServingSeen
from ratchet_operator.rollout.remembering import Memo
from ratchet_operator.servers import ServerWatch
from ratchet_operator.settings import Installation
from ratchet_operator.specs import parsed
from ratchet_operator.waker import Waker
from ratchet_operator.webhook import Webhook, message_of

log = logging.getLogger("ratchet.serving")

LOUD = frozenset({"Promoted", "TrialStarted"})
CHILDREN = (DEPLOYMENT, SERVICE, AUTOSCALER, DISRUPTION_BUDGET, NETWORK_POLICY, ENDPOINT_SLICE)


class Serving:
    """Decides for PolicyDeployments, and asks their servers.

    Args:
        observer: knows what was refused, and when a status was written.
        key: of the tokens that servers take orders by.
        waker: holds what is asked of PolicyDeployments without pods.

    """

    def __init__(
        self,
        api: ApiServer,
        cache: Cache,
        feed: Feed,
        sightings: SecretSightings,
        observer: Observer,
        installation: Installation,
        key: AdminKey,
        waker: Waker,
    ) -> None:
        self._api = api
        self._cache = cache
        self._sightings = sightings
        self._observer = observer
        self._installation = installation
        self._memos: dict[Key, Memo] = {}
        self.servers = ServerWatch(api, cache, key, feed.servers_said)
        self._waker = waker
        self._telling: set[asyncio.Task[None]] = set()
        self._webhook = Webhook()

    def forget(self, key: Key) -> None:
        """The object is gone."""
        self._memos.pop(key, None)
        self._waker.close(key.namespace, key.name)

    async def run(self) -> None:
        """Ask the servers for ever."""
        try:
            await self.servers.run()
        finally:
            telling = list(self._telling)
            for task in telling:
                task.cancel()
            await self._waker.stop()
            await asyncio.gather(*telling, return_exceptions=True)

    async def decide(self, obj: Json, key: Key, now: datetime) -> Plan:
        """One step."""
        plan = reconcile_serving(obj, await self._seen(obj, key, now), now)
        if isinstance(plan.memo, Memo):
            self._memos[key] = plan.memo
        return plan

    def tell(self, obj: Json, plan: Plan) -> None:
        """Post what people want to hear of, where the spec says where to; nobody waits for it."""
        webhook = sub(obj, "spec", "webhook", "secretRef").get("name")
        loud = [one for one in plan.occurrences if one.reason.startswith("RollBack") or one.reason in LOUD]
        if not webhook or not loud:
            return
        task = asyncio.create_task(self._post(obj, str(webhook), loud))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _post(self, obj: Json, secret: str, loud: list[Occurrence]) -> None:
        namespace = namespace_of(obj)
        subject = f"{namespace}/{name_of(obj)}"
        try:
            held = await self._api.get(SECRET, namespace, secret)
            url = base64.b64decode(sub(held, "data").get("WEBHOOK_URL", "")).decode().strip()
        except (ApiError, ValueError) as error:
            log.warning("no webhook", extra={"key": subject, "error": type(error).__name__})
            return
        if not url:
            log.warning("no webhook: its Secret lacks WEBHOOK_URL", extra={"key": subject})
            return
        async with aiohttp.ClientSession() as session:
            for one in loud:
                id_ = f"{uid_of(obj)}/{one.id}"
                await self._webhook.tell(session, url, id_, message_of(subject, one))

    async def _seen(self, obj: Json, key: Key, now: datetime) -> ServingSeen:
        """What is seen around a PolicyDeployment."""
        try:
            spec = parsed(PolicyDeploymentSpec, obj)
        except ValidationError:
            return ServingSeen(self._installation)  # the step validates again, and says what is wrong
        context = ServingContext.of(obj, spec, self._installation)
        namespace, label = context.namespace, label_value(context.name)
        pods = self._cache[POD].labelled(namespace, SERVING_LABEL, label)
        job: Json | None = None
        if spec.source.training_job is not None:
            job = self._cache[TRAINING_JOB].get(namespace, spec.source.training_job.job_ref.name)
        in_doubt = not all(is_ready(pod) for pod in pods)
        names = secrets_of(context, job)
        config_map, uids = await asyncio.gather(
            self._observer.config_map(namespace, context.config_name),
            asyncio.gather(*(self._sightings.uid(namespace, name, None, in_doubt) for name in names)),
        )
        children = {kind: self._observer.named(kind, namespace, SERVING_LABEL, label) for kind in CHILDREN}
        heard = self.servers.heard(context.uid)
        door = await self._door(context, children, pods, heard)
        written = self._observer.progress_written.get(key)
        return ServingSeen(
            installation=self._installation,
            config_map=config_map,
            children=children,
            pods=tuple(pods),
            job=job,
            secrets=dict(zip(names, uids, strict=True)),
            heard=heard,
            door=door,
            memo=self._memos.get(key, Memo()),
            refused=self._observer.refused.get(key),
            due_in=seconds_until_due(written, len(self._cache[POLICY_DEPLOYMENT]), now),
        )

    async def _door(
        self,
        context: ServingContext,
        children: Mapping[Kind, Mapping[str, Json]],
        pods: Iterable[Json],
        heard: Heard,
    ) -> Door:
        """Where its requests are held, if they ever are; it is told who can answer them now."""
        namespace, name = context.namespace, context.name
        if context.spec.scale_to_zero_after is not None or door_name(name) in children[ENDPOINT_SLICE]:
            await self._waker.open(namespace, name)
        door = self._waker.door(namespace, name)
        if door.port is not None:
            arm = sub(children[SERVICE].get(name), "spec", "selector").get(REVISION_LABEL, "")
            ready = {status_of(pod).get("podIP"): uid_of(pod) for pod in pods if is_ready(pod)}
            hosts = [host for host in heard.hosts.get(arm, ()) if host in ready]
            self._waker.serve(namespace, name, [(host, PORT) for host in hosts])
            if door.held and not {*ready.values()} <= {answer.uid for answer in heard.answers}:
                self.servers.hurry()
        return door
