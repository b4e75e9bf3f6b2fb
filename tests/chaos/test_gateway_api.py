"""What the operator does to a user's HTTPRoute, before a real API server that knows the Gateway API."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest
import yaml
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import load_kube_config
from localcluster import gomods
from localcluster.simulated import RequestError, SimulatedCluster
from ratchet_operator.apiserver import ApiError, ApiServer, Bucket
from ratchet_operator.build.gateway import Ours, Share, obstacle, patch_to
from ratchet_operator.httproutes import find
from ratchet_operator.kinds import HTTP_ROUTE, Json, items, meta, spec_of

T = TypeVar("T")
GATEWAY_API = "sigs.k8s.io/gateway-api@v1.6.1"
OURS = Ours("default", "cartpole")
RULES: list[Json] = [
    {"backendRefs": [{"name": "assets", "port": 80, "weight": 3}, {"name": "cartpole", "port": 8080}]},
    {
        "matches": [{"headers": [{"name": "x-lab", "value": "1"}]}],
        "filters": [
            {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "a", "value": "b"}]}}
        ],
        "backendRefs": [{"name": "cartpole", "port": 8080, "weight": 7}],
    },
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[SimulatedCluster]:
    with SimulatedCluster(scheduler=False) as cluster:
        yield cluster


def asked(cluster: SimulatedCluster, work: Callable[[ApiServer], Awaitable[T]]) -> T:
    """What the operator's own client gets."""

    async def inside() -> T:
        configuration = Configuration()
        await load_kube_config(config_file=str(cluster.admin_kubeconfig), client_configuration=configuration)
        async with ApiServer(configuration, Bucket(100, 100, time.monotonic)) as api:
            return await work(api)

    return asyncio.run(inside())


def test_a_cluster_without_the_api_is_told_from_one_without_the_route(cluster: SimulatedCluster) -> None:
    found = asked(cluster, lambda api: find(api, "default", "web"))

    assert (said := obstacle(found, OURS)) is not None
    assert said.reason == "GatewayAPINotFound"

    with_routes(cluster)
    found = asked(cluster, lambda api: find(api, "default", "web"))

    assert (said := obstacle(found, OURS)) is not None
    assert said.reason == "HTTPRouteNotFound"


def test_a_share_is_given_and_taken_back_and_who_is_faster_wins(cluster: SimulatedCluster) -> None:
    with_routes(cluster)
    route = {
        "apiVersion": HTTP_ROUTE.api_version,
        "kind": HTTP_ROUTE.kind,
        "metadata": {"name": "web"},
        "spec": {"rules": [{**RULES[0], "backendRefs": [{**RULES[0]["backendRefs"][1]}]}, RULES[1]]},
    }
    collection = HTTP_ROUTE.path("default")
    written = cluster.request("POST", collection, route)
    seen = asked(cluster, lambda api: find(api, "default", "web")).route
    assert seen == written
    operations = patch_to(written, OURS, Share("cartpole-0123abcd", 5))

    shared = asked(cluster, lambda api: api.amend(HTTP_ROUTE, "default", "web", operations))

    def weights(obj: Json) -> list[list[int]]:
        return [[one["weight"] for one in items(rule, "backendRefs")] for rule in spec_of(obj)["rules"]]

    assert weights(shared) == [[95, 5], [665, 35]]
    assert any(one["manager"] == "ratchet-operator" for one in meta(shared)["managedFields"])
    with pytest.raises(ApiError) as refused:
        asked(cluster, lambda api: api.amend(HTTP_ROUTE, "default", "web", operations))
    assert refused.value.status == 422, "it is no longer what was read"

    back = patch_to(shared, OURS, None)
    given_back = asked(cluster, lambda api: api.amend(HTTP_ROUTE, "default", "web", back))
    assert spec_of(given_back) == spec_of(written)


def with_routes(cluster: SimulatedCluster) -> None:
    """Puts the API's own definition of HTTPRoutes there, as its release has it."""
    folder = gomods.module_folder(GATEWAY_API) / "config" / "crd" / "standard"
    definition: Any = yaml.safe_load((folder / "gateway.networking.k8s.io_httproutes.yaml").read_text())
    try:
        cluster.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
    except RequestError as error:
        if "already exists" not in str(error):
            raise
    deadline = time.monotonic() + 30
    while True:
        try:
            cluster.request("GET", HTTP_ROUTE.path("default"))
        except RequestError:
            assert time.monotonic() < deadline, "the API server does not serve HTTPRoutes"
        else:
            return
