"""All that PolicyDeployments need of the process. numpy comes with it, which an operator of jobs alone
does not hold.
"""

import asyncio
import base64
import logging
from datetime import datetime

import aiohttp
from pydantic import ValidationError

from ratchet.api.v1alpha1 import PolicyDeploymentSpec
from ratchet_operator.adminkey import AdminKey
from ratchet_operator.apiserver import ApiError, ApiServer
from ratchet_operator.build.serving import ServingContext
from ratchet_operator.cache import Cache
from ratchet_operator.feed import Feed
from ratchet_operator.kinds import (
    AUTOSCALER,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    NETWORK_POLICY,
    POD,
    POLICY_DEPLOYMENT,
    SECRET,
    SERVICE,
    SERVING_LABEL,
    TRAINING_JOB,
    Json,
    Key,
    label_value,
    name_of,
    namespace_of,
    sub,
    uid_of,
)
from ratchet_operator.observe import Observer, SecretSightings
from ratchet_operator.plan import Occurrence, Plan
from ratchet_operator.policies.progress import seconds_until_due
from ratchet_operator.policies.waiting import is_ready
from ratchet_operator.reconcile.serving import reconcile_serving, secrets_of
from ratchet_operator.reconcile.servingseen import ServingSeen
from ratchet_operator.rollout.remembering import Memo
from ratchet_operator.servers import ServerWatch
from ratchet_operator.settings import Installation
from ratchet_operator.specs import parsed
from ratchet_operator.webhook import Webhook, message_of

log = logging.getLogger("ratchet.serving")

LOUD = frozenset({"Promoted", "TrialStarted"})
CHILDREN = (DEPLOYMENT, SERVICE, AUTOSCALER, DISRUPTION_BUDGET, NETWORK_POLICY)


class Serving:
    """Decides for PolicyDeployments, and asks their servers.

    Args:
        observer: knows what was refused, and when a status was written.
        key: of the tokens that servers take orders by.

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
    ) -> None:
        self._api = api
        self._cache = cache
        self._sightings = sightings
        self._observer = observer
        self._installation = installation
        self._memos: dict[Key, Memo] = {}
        self.servers = ServerWatch(api, cache, key, feed.servers_said)
        self._telling: set[asyncio.Task[None]] = set()
        self._webhook = Webhook()

    def forget(self, key: Key) -> None:
        """The object is gone."""
        self._memos.pop(key, None)

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
        written = self._observer.progress_written.get(key)
        return ServingSeen(
            installation=self._installation,
            config_map=config_map,
            children=children,
            pods=tuple(pods),
            job=job,
            secrets=dict(zip(names, uids, strict=True)),
            heard=self.servers.heard(context.uid),
            memo=self._memos.get(key, Memo()),
            refused=self._observer.refused.get(key),
            due_in=seconds_until_due(written, len(self._cache[POLICY_DEPLOYMENT]), now),
        )
