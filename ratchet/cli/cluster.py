"""The seam to Kubernetes: the few calls the command makes, and their real implementation.

The Kubernetes client is imported when it is first needed; `ratchet --help` does without.
"""

import json
import math
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from ratchet.api import API_VERSION, GROUP, VERSION
from ratchet.api.v1alpha1.kinds import Kind
from ratchet.cli.outcome import CommandError, Exit

if TYPE_CHECKING:
    from kubernetes import client

Resource = dict[str, Any]

FIELD_MANAGER = "ratchet-cli"
CONNECT_SECONDS = 5
READ_SECONDS = 30
WATCH_SECONDS = 240
SILENCE_SECONDS = 24 * 3600  # of a log that is followed
RECONNECT_PAUSE_SECONDS = 2.0
RECONNECTS = 30


@dataclass(frozen=True, slots=True)
class Target:
    """Which cluster and namespace the user means; None is what the kubeconfig says."""

    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None


class Cluster(Protocol):
    """What the command asks of a cluster. Every call may raise `CommandError`."""

    namespace: str

    def get(self, kind: Kind, name: str) -> Resource | None:
        """Return one object, or None when there is none of that name."""
        ...

    def objects(self, kind: Kind, everywhere: bool = False) -> list[Resource]:
        """Return all objects of the namespace, or of all namespaces."""
        ...

    def apply(self, resource: Resource, kind: Kind) -> Resource:
        """Server-side apply; the file wins over what others wrote."""
        ...

    def patch(self, kind: Kind, name: str, change: Resource) -> Resource:
        """Merge a change into an object that exists."""
        ...

    def watch(self, kind: Kind, name: str, limit: float | None = None) -> Iterator[Resource | None]:
        """Yield the object at once and on every change; None once it has been deleted.

        Ends after `limit` seconds, never without one.
        """
        ...

    def pods(self, selector: str) -> list[str]:
        """Return the names of the pods that have these labels, oldest first."""
        ...

    def logs(self, pods: list[str], follow: bool, tail: int | None) -> Iterator[tuple[str, str]]:
        """Yield (pod, line); following, lines of several pods come as they are written."""
        ...


Connect = Callable[[Target], Cluster]


def connect(target: Target) -> Cluster:
    """Reach the cluster that the kubeconfig, or the pod this runs in, names."""
    from kubernetes import client, config
    from kubernetes.config.config_exception import ConfigException

    settings = client.Configuration()
    load = cast(Any, config)
    try:
        load.load_kube_config(
            config_file=target.kubeconfig, context=target.context, client_configuration=settings
        )
        namespace = target.namespace or _context_namespace(target)
    except (ConfigException, OSError) as error:
        if target.kubeconfig or target.context:
            raise CommandError(f"kubeconfig: {error}", Exit.UNAVAILABLE) from error
        try:
            load.load_incluster_config(client_configuration=settings)
        except ConfigException:
            raise CommandError(
                "no cluster is configured: set KUBECONFIG, pass --kubeconfig, or make a local one "
                "with `make cluster`",
                Exit.UNAVAILABLE,
            ) from error
        namespace = target.namespace or "default"
    settings.retries = 0  # one sentence at once is better than silence
    return KubernetesCluster(client.ApiClient(settings), namespace)


def _context_namespace(target: Target) -> str:
    from kubernetes import config

    contexts, active = cast(Any, config).list_kube_config_contexts(config_file=target.kubeconfig)
    chosen = next((item for item in contexts if item["name"] == target.context), active)
    return str(chosen["context"].get("namespace") or "default")


class KubernetesCluster:
    """A real cluster, through the official client."""

    def __init__(self, api_client: "client.ApiClient", namespace: str) -> None:
        from kubernetes import client

        self.namespace = namespace
        self._server = str(cast(Any, api_client).configuration.host)
        self._custom: Any = client.CustomObjectsApi(api_client)
        self._core: Any = client.CoreV1Api(api_client)
        self._timeouts = {"_request_timeout": (CONNECT_SECONDS, READ_SECONDS)}

    def get(self, kind: Kind, name: str) -> Resource | None:
        """Return one object, or None when there is none of that name."""
        with self._words():
            try:
                found = self._custom.get_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, kind.plural, name, **self._timeouts
                )
            except Exception as error:
                if _is_absent(error):
                    return None
                raise
        return cast(Resource, found)

    def objects(self, kind: Kind, everywhere: bool = False) -> list[Resource]:
        """Return all objects of the namespace, or of all namespaces."""
        with self._words():
            if everywhere:
                found = self._custom.list_cluster_custom_object(GROUP, VERSION, kind.plural, **self._timeouts)
            else:
                found = self._custom.list_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, kind.plural, **self._timeouts
                )
        return cast(list[Resource], found["items"])

    def apply(self, resource: Resource, kind: Kind) -> Resource:
        """Server-side apply; the file wins over what others wrote."""
        namespace = resource["metadata"].get("namespace") or self.namespace
        at = (GROUP, VERSION, namespace, kind.plural, resource["metadata"]["name"])
        with self._words():
            applied = self._custom.patch_namespaced_custom_object(
                *(*at, resource),
                field_manager=FIELD_MANAGER,
                field_validation="Strict",
                force=True,
                _content_type="application/apply-patch+yaml",
                **self._timeouts,
            )
            # The client reads the body of a 200 but not of the 201 that answers a new object.
            found = applied or self._custom.get_namespaced_custom_object(*at, **self._timeouts)
        return cast(Resource, found)

    def patch(self, kind: Kind, name: str, change: Resource) -> Resource:
        """Merge a change into an object that exists."""
        with self._words():
            return cast(
                Resource,
                self._custom.patch_namespaced_custom_object(
                    *(GROUP, VERSION, self.namespace, kind.plural, name, change),
                    field_manager=FIELD_MANAGER,
                    _content_type="application/merge-patch+json",
                    **self._timeouts,
                ),
            )

    def watch(self, kind: Kind, name: str, limit: float | None = None) -> Iterator[Resource | None]:
        """Yield the object at once and on every change; None once it has been deleted.

        Ends after `limit` seconds, never without one.
        """
        failed, until = 0, math.inf if limit is None else time.monotonic() + limit
        while (left := until - time.monotonic()) > 0:
            try:
                with self._words():
                    for event in self._events(kind, name, math.ceil(min(left, WATCH_SECONDS))):
                        failed = 0
                        yield None if event["type"] == "DELETED" else cast(Resource, event["object"])
                # A relist is due: what was deleted in between would send no event.
                if self.get(kind, name) is None:
                    yield None
            except CommandError as error:
                failed += 1
                if error.code is not Exit.UNAVAILABLE or failed > RECONNECTS:
                    raise
                time.sleep(min(RECONNECT_PAUSE_SECONDS, max(0.0, until - time.monotonic())))

    def _events(self, kind: Kind, name: str, lasting: int) -> Iterator[Resource]:
        from kubernetes import watch

        try:
            yield from cast(Any, watch.Watch()).stream(
                self._custom.list_namespaced_custom_object,
                *(GROUP, VERSION, self.namespace, kind.plural),
                field_selector=f"metadata.name={name}",
                timeout_seconds=lasting,
                _request_timeout=(CONNECT_SECONDS, lasting + READ_SECONDS),
            )
        except Exception as error:
            if getattr(error, "status", None) != 410:  # too old a version: start anew
                raise

    def pods(self, selector: str) -> list[str]:
        """Return the names of the pods that have these labels, oldest first."""
        with self._words():
            found = self._core.list_namespaced_pod(self.namespace, label_selector=selector, **self._timeouts)
        ordered = sorted(found.items, key=lambda pod: str(pod.metadata.creation_timestamp))
        return [pod.metadata.name for pod in ordered]

    def logs(self, pods: list[str], follow: bool, tail: int | None) -> Iterator[tuple[str, str]]:
        """Yield (pod, line); following, lines of several pods come as they are written."""
        if not follow or len(pods) == 1:
            for pod in pods:
                yield from self._lines(pod, follow, tail)
            return
        lines: queue.Queue[tuple[str, str] | None] = queue.Queue(maxsize=1000)

        def read(pod: str) -> None:
            try:
                for line in self._lines(pod, follow, tail):
                    lines.put(line)
            except CommandError as error:
                lines.put((pod, f"({error})"))
            finally:
                lines.put(None)

        for pod in pods:
            threading.Thread(target=read, args=(pod,), daemon=True).start()
        ended = 0
        while ended < len(pods):
            line = lines.get()
            if line is None:
                ended += 1
            else:
                yield line

    def _lines(self, pod: str, follow: bool, tail: int | None) -> Iterator[tuple[str, str]]:
        with self._words():
            response = self._core.read_namespaced_pod_log(
                pod,
                self.namespace,
                follow=follow,
                tail_lines=tail,
                _preload_content=False,
                _request_timeout=(CONNECT_SECONDS, SILENCE_SECONDS if follow else READ_SECONDS),
            )
            rest = b""
            for chunk in response.stream(amt=None):
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield pod, line.decode(errors="replace")
            if rest:
                yield pod, rest.decode(errors="replace")

    @contextmanager
    def _words(self) -> Generator[None]:
        """Turn the client's errors into sentences."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as error:
            raise _in_words(error) from error
        except (HTTPError, OSError) as error:
            raise CommandError(
                f"the cluster's API server at {self._server} does not answer: is the cluster up, and is "
                "the kubeconfig's context the one you mean?",
                Exit.UNAVAILABLE,
            ) from error


def _is_absent(error: Exception) -> bool:
    """Tell "no such object" from "no such kind of object": both are 404."""
    return getattr(error, "status", None) == 404 and "page not found" not in str(getattr(error, "body", ""))


def _in_words(error: Any) -> CommandError:
    body = error.body.decode() if isinstance(error.body, bytes) else str(error.body or "")
    if error.status == 404 and "page not found" in body:
        return CommandError(
            f"this cluster has no {API_VERSION}: install the chart first, "
            "helm install ratchet charts/ratchet -n ratchet-system --create-namespace",
            Exit.UNAVAILABLE,
        )
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        message = str(error.reason or body or "the API server refused")
    if error.status == 401:
        return CommandError(f"the cluster does not know you: {message}", Exit.UNAVAILABLE)
    return CommandError(message)
