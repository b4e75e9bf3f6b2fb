"""A small client of the API server: plain JSON over aiohttp, with the credentials of `kubernetes.aio`."""

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

import aiohttp
import orjson
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import (
    ConfigException,
    load_incluster_config,  # pyright: ignore[reportUnknownVariableType]
    load_kube_config,  # pyright: ignore[reportUnknownVariableType]
)

from ratchet_operator.kinds import FIELD_MANAGER, Json, Kind, items, sub
from ratchet_operator.metrics import API_READS, API_WRITES, ERRORS

PARTIAL = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=20)
PAGE = 100
AT_ONCE = 64  # requests
DEEPEST = 10_000  # levels of JSON that API servers take, of what a schema leaves open
NO_VERSION = "1"  # of no object, since etcd's first write has revision 2


class ApiError(Exception):
    """The API server said no.

    Attributes:
        status: HTTP status; 0 where no answer came.
        reason: metav1.Status reason.
        message: the server's sentence.
        retry_after: seconds for which the server wants not to be asked again; None where it did not say.
        causes: reasons of its details.

    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        retry_after: float | None = None,
        causes: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        self.causes = causes

    @property
    def is_namespace_going(self) -> bool:
        """Whether nothing can be created since the namespace is being deleted."""
        return self.status == 403 and "NamespaceTerminating" in self.causes


async def load_configuration() -> Configuration:
    """Credentials of the pod, else of the kubeconfig."""
    configuration = Configuration()
    try:
        load_incluster_config(configuration)
    except ConfigException:
        await load_kube_config(client_configuration=configuration)
    return configuration


class Bucket:
    """A token bucket in which callers wait in the order in which they came."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._tokens, self._at = burst, clock()

    def reserve(self) -> float:
        """Take a token; returns how many seconds to wait before using it."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)

    async def take(self) -> None:
        """Wait for a token."""
        wait = self.reserve()
        if wait > 0:
            await asyncio.sleep(wait)


class ApiServer:
    """Requests to one API server; use as an async context manager.

    Attributes:
        may_write: asked before each request that changes something, once there is a connection for it; where
            it says no, the request is not sent.
        bucket: that writes on an object's behalf take from.

    """

    def __init__(self, configuration: Configuration, bucket: Bucket) -> None:
        self.configuration = configuration
        self.may_write: Callable[[], bool] = lambda: True
        self.bucket = bucket
        self._session: aiohttp.ClientSession | None = None
        self._watching: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "ApiServer":
        # One object that json can't read would end kopf, and each list of its kind. 8 MiB of stack hold that.
        sys.setrecursionlimit(max(sys.getrecursionlimit(), DEEPEST + 2_000))
        self._session = session(self.configuration, limit=AT_ONCE, may_write=lambda: self.may_write())
        self._watching = session(self.configuration, limit=0)  # a watch keeps its connection for minutes
        return self

    async def __aexit__(self, *_: object) -> None:
        for connections in (self._session, self._watching):
            if connections is not None:
                await connections.close()

    async def _headers(self, accept: str, content_type: str | None) -> dict[str, str]:
        headers = {"Accept": accept, **await credentials(self.configuration)}
        if content_type:
            headers["Content-Type"] = content_type
        return headers

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        params: dict[str, str] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Json:
        """One request.

        Raises:
            ApiError: the server refused, or did not answer.

        """
        if self._session is None:
            raise RuntimeError("use ApiServer as an async context manager")
        data = None if body is None else orjson.dumps(body)
        headers = await self._headers(accept, content_type if data else None)
        try:
            async with self._session.request(
                method, path, data=data, params=params, headers=headers
            ) as answer:
                text = await answer.read()
                if answer.status < 400:
                    return parsed(text) if text else {}
                raise _error(answer.status, text, answer.headers.get("Retry-After"))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(0, type(error).__name__, str(error) or f"{method} {path} got no answer") from error
        except ValueError as error:
            raise ApiError(0, "NoJSON", f"{method} {path} got what is no JSON: {error}") from error

    async def _write(self, verb: str, kind: Kind, *args: Any, **kwargs: Any) -> Json:
        await self.bucket.take()
        API_WRITES.labels(verb, kind.kind).inc()
        try:
            return await self.request(*args, **kwargs)
        except ApiError as error:
            ERRORS.labels(f"{verb} {kind.kind} {error.status}").inc()
            raise

    async def get(self, kind: Kind, namespace: str, name: str, metadata_only: bool = False) -> Json | None:
        """One object, None where it is not."""
        API_READS.labels("get", kind.kind).inc()
        accept = PARTIAL if metadata_only else "application/json"
        try:
            return await self.request("GET", kind.path(namespace, name), accept=accept)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def pages(
        self, kind: Kind, namespace: str | None, selector: str | None, fields: str | None = None
    ) -> AsyncIterator[tuple[list[Json], int]]:
        """All objects of a kind that the selectors find, a page at a time since they are large when they
        come, and the resourceVersion of the list, which is the same for all pages.
        """
        API_READS.labels("list", kind.kind).inc()
        params = {"limit": str(PAGE)}
        if selector:
            params["labelSelector"] = selector
        if fields:
            params["fieldSelector"] = fields
        while True:
            page = await self.request("GET", kind.path(namespace), params=params)
            about: Json = sub(page, "metadata")
            yield items(page, "items"), int(about.get("resourceVersion") or 0)
            if not about.get("continue"):
                return
            params["continue"] = about["continue"]

    async def apply(self, kind: Kind, obj: Json, version: str | None = None) -> Json:
        """Server-side apply with our field manager, by force.

        Raises:
            ApiError: of status 409 also where `version` is given and the object has another. NO_VERSION makes
                an object only where there is none: an absent one has no version that could differ.

        """
        metadata = obj["metadata"]
        if version is not None:
            obj = {**obj, "metadata": {**metadata, "resourceVersion": version}}
        return await self._write(
            "apply",
            kind,
            "PATCH",
            kind.path(metadata.get("namespace"), metadata["name"]),
            body=obj,
            params={"fieldManager": FIELD_MANAGER, "force": "true"},
            content_type="application/apply-patch+yaml",
        )

    async def create(self, kind: Kind, obj: Json, accept: str = "application/json") -> Json:
        """Create an object."""
        return await self._write(
            "create",
            kind,
            "POST",
            kind.path(obj["metadata"]["namespace"]),
            body=obj,
            params={"fieldManager": FIELD_MANAGER},
            accept=accept,
        )

    async def patch_status(self, kind: Kind, namespace: str, name: str, status: Json) -> Json:
        """JSON merge patch of the status subresource."""
        return await self._write(
            "patch",
            kind,
            "PATCH",
            kind.path(namespace, name, "status"),
            body={"status": status},
            params={"fieldManager": FIELD_MANAGER},
            content_type="application/merge-patch+json",
        )

    async def amend(self, kind: Kind, namespace: str, name: str, operations: Sequence[Json]) -> Json:
        """JSON patch.

        Raises:
            ApiError: of status 422 also where one of its tests does not hold.

        """
        return await self._write(
            "amend",
            kind,
            "PATCH",
            kind.path(namespace, name),
            body=operations,
            params={"fieldManager": FIELD_MANAGER},
            content_type="application/json-patch+json",
        )

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> Json | None:
        """Delete exactly this object; gone or replaced already is as good.

        Returns:
            the object where it lives on for a while, None where it is gone.

        """
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        try:
            answer = await self._write("delete", kind, "DELETE", kind.path(namespace, name), body=body)
        except ApiError as error:
            # Any other conflict leaves the object where it is.
            if error.status == 404 or (error.status == 409 and "UID in precondition" in error.message):
                return None
            raise
        return answer if sub(answer, "metadata").get("deletionTimestamp") else None

    async def watch(
        self,
        kind: Kind,
        namespace: str | None,
        selector: str | None = None,
        since: str | None = None,
        *,
        fields: str | None = None,
        seconds: float = 300.0,
        silence: float = 60.0,
    ) -> AsyncGenerator[Json]:
        """Events of one watch until the server ends it, bookmarks among them.

        Args:
            kind: what to watch.
            namespace: where; everywhere if None.
            selector: of labels.
            since: resourceVersion after which to begin; where it is None, with all that there is.
            fields: selector of fields.
            seconds: after which the API server is to end the watch.
            silence: seconds without a word after which the connection is taken for dead.

        Raises:
            ApiError: the watch could not be opened or broke.

        """
        if self._watching is None:
            raise RuntimeError("use ApiServer as an async context manager")
        asked = {"labelSelector": selector, "fieldSelector": fields, "resourceVersion": since}
        params = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": f"{seconds:.0f}",
            **{key: value for key, value in asked.items() if value},
        }
        headers = await self._headers("application/json", None)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=silence)
        try:
            async with self._watching.get(
                kind.path(namespace), params=params, headers=headers, timeout=timeout
            ) as answer:
                if answer.status >= 400:
                    raise _error(answer.status, await answer.read(), answer.headers.get("Retry-After"))
                rest = b""
                async for chunk in answer.content.iter_any():  # its own lines end at 128 kB
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        yield parsed(line)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(0, type(error).__name__, str(error) or "the watch broke") from error
        except ValueError as error:
            raise ApiError(0, "NoJSON", f"a watch said what is no JSON: {error}") from error


def parsed(text: bytes) -> Any:
    """JSON as deep as API servers take it; orjson stops at a tenth of that.

    Raises:
        ValueError: it is none.

    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)


class _Connections(aiohttp.TCPConnector):
    """Asks whether a write may be sent as late as that can be: by then it may have waited long for others."""

    may_write: Callable[[], bool]

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[aiohttp.tracing.Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
    ) -> aiohttp.connector.Connection:
        connection = await super().connect(req, traces, timeout)
        if req.method != "GET" and not self.may_write():
            connection.release()
            raise ApiError(0, "NotLeading", "another operator may lead by now")
        return connection


def session(
    configuration: Configuration,
    *,
    limit: int,
    middlewares: tuple[aiohttp.ClientMiddlewareType, ...] = (),
    may_write: Callable[[], bool] = lambda: True,
) -> aiohttp.ClientSession:
    """Connections to the API server, `limit` at once, 0 for any number. Each request needs `credentials`.

    Without `may_write` a write raises ApiError.
    """
    connections = _Connections(limit=limit, ssl=_ssl(configuration))
    connections.may_write = may_write
    return aiohttp.ClientSession(
        base_url=configuration.host,
        connector=connections,
        timeout=REQUEST_TIMEOUT,
        middlewares=middlewares,
    )


async def credentials(configuration: Configuration) -> dict[str, str]:
    """The header that says who we are. Ask each time: a pod's token is another one now and then."""
    token = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
    return {"Authorization": token} if token else {}


def _ssl(configuration: Configuration) -> ssl.SSLContext | bool:
    if not str(configuration.host).startswith("https"):
        return True
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert, cadata=configuration.ca_cert_data)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _error(status: int, text: bytes, retry_after: str | None) -> ApiError:
    causes: frozenset[str] = frozenset()
    try:
        answer = orjson.loads(text)
        reason, message = str(answer.get("reason", "")), str(answer.get("message", ""))
        causes = frozenset(str(cause.get("reason")) for cause in items(sub(answer, "details"), "causes"))
    except (ValueError, AttributeError):
        reason, message = "", text[:500].decode(errors="replace")
    wait = float(retry_after) if retry_after and retry_after.isdecimal() else None
    return ApiError(status, reason, message, wait, causes)
