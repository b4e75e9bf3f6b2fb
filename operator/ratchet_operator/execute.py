"""Carries a Plan out: the only place that writes on an object's behalf, and that draws passwords."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar, cast

from ratchet_operator.adminkey import AdminKey, NoAdminKeyError
from ratchet_operator.apiserver import NO_VERSION, PARTIAL, ApiError, ApiServer
from ratchet_operator.build.admin import admin_secret
from ratchet_operator.build.redis import redis_secret
from ratchet_operator.feed import Feed
from ratchet_operator.kinds import (
    CONFIG_MAP,
    ENDPOINT_SLICE,
    EVENT,
    KIND_BY_NAME,
    NETWORK_POLICY,
    SECRET,
    SERVICE,
    Json,
    Key,
    controller_of,
    digest,
    is_owned_by,
    meta,
    name_of,
    uid_of,
)
from ratchet_operator.metrics import EVENTS
from ratchet_operator.observe import SecretSightings
from ratchet_operator.plan import (
    ABSENT,
    Amend,
    Apply,
    CreateAdminSecret,
    CreateRedisSecret,
    Delete,
    Occurrence,
    Plan,
)
from ratchet_operator.taken import Child, Taken

log = logging.getLogger("ratchet.execute")

PASSWORD_BYTES = 32
BEFORE_PODS = (CONFIG_MAP, SERVICE, NETWORK_POLICY, ENDPOINT_SLICE)
T = TypeVar("T")


class Executor:
    """Carries out plans.

    Args:
        api: the API server.
        feed: gets the answers to our own writes at once.
        sightings: gets the UIDs of Secrets that we made.
        identity: name of this process, for Events.
        key: of the tokens that policy servers take orders by.
        taken: remembers where strangers' objects are.

    """

    def __init__(
        self,
        api: ApiServer,
        feed: Feed,
        sightings: SecretSightings,
        identity: str,
        key: AdminKey,
        taken: Taken,
    ) -> None:
        self._api = api
        self._sightings = sightings
        self._feed = feed
        self._identity = identity
        self._key = key
        self._taken = taken

    async def execute(self, key: Key, obj: Json, plan: Plan, now: datetime) -> str | None:
        """Carry out one plan for one object.

        Returns:
            what the API server said about a child that it would not take, None where it took all.

        Raises:
            ApiError: a request failed and may succeed later.

        """
        # The ledger goes before what starts by it; what only points at pods goes with it.
        early = [apply for apply in plan.apply if apply.kind in BEFORE_PODS]
        late = [apply for apply in plan.apply if apply.kind not in BEFORE_PODS]
        refusals = await together(
            *(self._create_secret(key, secret) for secret in plan.secrets),
            *(self._apply(key, apply) for apply in early),
        )
        refusals += await together(*(self._apply(key, apply) for apply in late))
        refusals += await together(*(self._amend(key, amend) for amend in plan.amend))
        if plan.status is not None:
            await self._status(key, plan.status)
        await together(*(self._tell(key, obj, occurrence, now) for occurrence in plan.occurrences))
        await together(*(self._delete(key, delete) for delete in plan.delete))
        said = [refusal for refusal in refusals if refusal]
        return "; ".join(said) if said else None

    async def _create_secret(self, key: Key, wanted: CreateRedisSecret | CreateAdminSecret) -> str | None:
        child = SECRET.kind, wanted.name, wanted.uid
        if said := self._taken.said(key, child):
            return said
        where = wanted.namespace, wanted.name, wanted.labels, wanted.owner
        if isinstance(wanted, CreateAdminSecret):
            try:
                obj = admin_secret(*where, self._key.token(wanted.uid))
            except NoAdminKeyError as error:
                return str(error)
        else:
            obj = redis_secret(*where, wanted.uid, secrets.token_urlsafe(PASSWORD_BYTES))
        try:
            created = await self._api.create(SECRET, obj, accept=PARTIAL)
        except ApiError as error:
            self._sightings.forget(wanted.namespace, wanted.name)
            if error.status != 409:
                raise
            said = f"Secret {wanted.name} exists and belongs to someone else: rename it, or its owner"
            return self._taken.found(key, child, said)
        self._sightings.put(wanted.namespace, wanted.name, created)
        return None

    async def _apply(self, key: Key, apply: Apply) -> str | None:
        name = apply.obj["metadata"]["name"]
        if apply.why == ABSENT and (said := self._taken.said(key, _child(apply))):
            return said
        log.info("apply", extra={"key": str(key), "child": f"{apply.kind.kind}/{name}", "why": apply.why})
        version = NO_VERSION if apply.why == ABSENT else apply.version
        try:
            live = await self._api.apply(apply.kind, apply.obj, version)
        except ApiError as error:
            if error.status == 409 and version == NO_VERSION and apply.kind is not CONFIG_MAP:
                return await self._occupied(key, apply)
            if error.status == 409:
                await self._refresh(apply)
            if error.status in (400, 422) or _is_policy(error):
                return f"{apply.kind.kind} {name}: {error.message}"
            raise
        self._feed.wrote(apply.kind, live)
        return None

    async def _amend(self, key: Key, amend: Amend) -> str | None:
        """What the API server refuses is read anew at the next look: somebody may have been faster."""
        child = f"{amend.kind.kind} {amend.name}"
        log.info("amend", extra={"key": str(key), "child": child, "why": amend.why})
        try:
            await self._api.amend(amend.kind, amend.namespace, amend.name, amend.operations)
        except ApiError as error:
            if error.status in (400, 403, 404, 409, 422):
                return f"{child}: {error.message}"
            raise
        return None

    async def _occupied(self, key: Key, apply: Apply) -> str | None:
        """What has the name lacks the label that we watch. Ours gets it back; all else is left alone."""
        metadata, kind = apply.obj["metadata"], apply.kind
        name = metadata["name"]
        named = self._api.pages(kind, metadata["namespace"], None, fields=f"metadata.name={name}")
        there = [obj async for page, _ in named for obj in page]
        child = _child(apply)
        if there and not is_owned_by(there[0], child[2]):
            said = f"{kind.kind} {name} exists and belongs to someone else: rename it, or this {key.kind}"
            return self._taken.found(key, child, said)
        return await self._apply(key, replace(apply, why="metadata.labels"))

    async def _refresh(self, apply: Apply) -> None:
        """A lost race: learn what is there before the next try."""
        if apply.kind is not CONFIG_MAP:
            return
        metadata = apply.obj["metadata"]
        live = await self._api.get(apply.kind, metadata["namespace"], metadata["name"])
        if live is not None:
            self._feed.wrote(apply.kind, live)

    async def _status(self, key: Key, patch: Json) -> None:
        kind = KIND_BY_NAME[key.kind]
        try:
            live = await self._api.patch_status(kind, key.namespace, key.name, patch)
        except ApiError as error:
            if error.status == 404:
                return
            raise
        self._feed.wrote(kind, live)

    async def _tell(self, key: Key, obj: Json, occurrence: Occurrence, now: datetime) -> None:
        time = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        event: Json = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{key.name[:200]}.{digest([uid_of(obj), occurrence.id], 16)}",
                "namespace": key.namespace,
            },
            "involvedObject": {
                "apiVersion": KIND_BY_NAME[key.kind].api_version,
                "kind": key.kind,
                "namespace": key.namespace,
                "name": key.name,
                "uid": uid_of(obj),
                "resourceVersion": meta(obj).get("resourceVersion"),
            },
            "type": occurrence.type,
            "reason": occurrence.reason,
            "message": occurrence.message[:1024],
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
            "source": {"component": "ratchet-operator"},
            "reportingComponent": "ratchet-operator",
            "reportingInstance": self._identity,
        }
        log.info(occurrence.message, extra={"key": str(key), "event": occurrence.reason})
        EVENTS.labels(key.kind, occurrence.reason).inc()
        try:
            await self._api.create(EVENT, event)
        except ApiError as error:
            log.warning("event not written", extra={"key": str(key), "error": str(error)})

    async def _delete(self, key: Key, delete: Delete) -> None:
        log.info(
            "delete", extra={"key": str(key), "child": f"{delete.kind.kind}/{delete.name}", "why": delete.why}
        )
        left = await self._api.delete(delete.kind, delete.namespace, delete.name, delete.uid)
        if left is None:
            self._feed.removed(delete.kind, delete.uid)
        else:
            self._feed.wrote(delete.kind, left)


async def together(*requests: Awaitable[T]) -> list[T]:
    """Their answers; where one fails the others are still waited for, so that none goes on unseen.

    Raises:
        ApiError: the first failure.

    """
    answers = await asyncio.gather(*requests, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return cast(list[T], answers)


def _child(apply: Apply) -> Child:
    return apply.kind.kind, name_of(apply.obj), (controller_of(apply.obj) or {}).get("uid", "")


def _is_policy(error: ApiError) -> bool:
    """Whether a 403 is an admission's or a quota's no to this object, not a lack of permission of ours."""
    return (
        error.status == 403
        and "cannot patch resource" not in error.message
        and ("cannot create resource" not in error.message)
        and not error.is_namespace_going
    )
