"""The operator's door to a PolicyDeployment without pods: an EndpointSlice beside those of its Service.

Whoever sends requests by EndpointSlices takes all that name a Service, whoever wrote them.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ratchet_operator.build.serving import ServingContext
from ratchet_operator.kinds import ENDPOINT_SLICE, Json, is_deleting, items, labels_of, sub

SERVICE_LABEL = "kubernetes.io/service-name"
MANAGER_LABEL = "endpointslice.kubernetes.io/managed-by"
MANAGER = "waker.ratchet.dev"


@dataclass(frozen=True, slots=True)
class Door:
    """Where this operator holds the requests of a PolicyDeployment that has no pod to answer them.

    Attributes:
        host, port: where it listens; no port where none was free.
        held: requests that wait for a server.
        is_asked: whether one came in the last seconds, although its client may have given up.

    """

    host: str = ""
    port: int | None = None
    held: int = 0
    is_asked: bool = False


def door_name(name: str) -> str:
    """Of the slice of the PolicyDeployment with a name."""
    return f"{name}-waker"


def door_slice(context: ServingContext, door: Door) -> Json:
    """`<name>-waker`: clients of the Service `<name>` find the operator too."""
    obj = context.child(ENDPOINT_SLICE, door_name(context.name))
    obj["metadata"]["labels"] |= {SERVICE_LABEL: context.name, MANAGER_LABEL: MANAGER}
    return obj | {
        "addressType": "IPv6" if ":" in door.host else "IPv4",
        "endpoints": [{"addresses": [door.host], "conditions": {"ready": True}}],
        "ports": [{"name": "http", "port": door.port, "protocol": "TCP", "appProtocol": "http"}],
    }


def leads_to(live: Json | None, door: Door) -> bool:
    """Whether a slice brings clients to this door."""
    if live is None or is_deleting(live):
        return False
    hosts = [host for one in items(live, "endpoints") for host in one.get("addresses", [])]
    ports = [one.get("port") for one in items(live, "ports")]
    return (hosts, ports) == ([door.host], [door.port])


def finds_one_of(slices: Iterable[Json], service: str, hosts: Collection[str]) -> bool:
    """Whether a Service's own slices bring clients to one of these pods."""
    return any(
        host in hosts
        for one in slices
        if labels_of(one).get(SERVICE_LABEL) == service and labels_of(one).get(MANAGER_LABEL) != MANAGER
        for endpoint in items(one, "endpoints")
        if sub(endpoint, "conditions").get("ready", True)
        for host in endpoint.get("addresses", [])
    )
