"""Clients who come through Envoy Gateway: while a trial lasts, the canary's share stands in their HTTPRoute.

As in `test_rollout`, under players whose requests keep their schedule whatever is answered.
"""

import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arena import NAME, Arena
from cluster import Json, Namespace, condition, eventually
from rollouts import deployment

ROOT = Path(__file__).parents[2]
GATEWAY = "web"
CLASS = "ratchet-tests"
CONTROL_PLANE = Namespace("envoy-gateway-system")
OBSERVATION = [0.0, 0.0, 0.01, 0.0]
# Beside what sends to us, what must stay as it is: another rule, a filter, a timeout.
RULES: list[Json] = [
    {
        "matches": [{"path": {"type": "PathPrefix", "value": "/old"}}],
        "filters": [
            {
                "type": "RequestRedirect",
                "requestRedirect": {"path": {"type": "ReplaceFullPath", "replaceFullPath": "/v1/act"}},
            }
        ],
    },
    {
        "filters": [
            {
                "type": "ResponseHeaderModifier",
                "responseHeaderModifier": {"set": [{"name": "x-by", "value": "gateway"}]},
            }
        ],
        "timeouts": {"request": "10s"},
        "backendRefs": [{"name": NAME, "port": 8080}],
    },
]
# Without an episode: each request is the gateway's to send.
ASK = f"""
import json, sys, urllib.request
body = json.dumps({{"observation": {OBSERVATION}}}).encode()
for _ in range(int(sys.argv[2])):
    with urllib.request.urlopen(urllib.request.Request(sys.argv[1] + "/v1/act", body)) as answer:
        print(json.load(answer)["digest"], answer.headers["x-by"])
"""


@pytest.fixture(scope="module")
def control_plane(request: pytest.FixtureRequest) -> Iterator[None]:
    """Envoy Gateway; what it takes to have it is told, step by step."""
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        subprocess.run(["hack/cluster", "gateway"], cwd=ROOT, check=True)
    CONTROL_PLANE.apply(
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "GatewayClass",
            "metadata": {"name": CLASS},
            "spec": {"controllerName": "gateway.envoyproxy.io/gatewayclass-controller"},
        }
    )
    yield
    CONTROL_PLANE.kubectl("delete", "gatewayclass", CLASS)


@pytest.fixture(scope="module")
def url(arena: Arena) -> str:
    """Of the gateway."""
    addresses = eventually(
        "the Gateway is programmed",
        lambda: (
            condition(found := arena.namespace.find("gateway", GATEWAY), "Programmed").get("status") == "True"
            and found
            and found["status"]["addresses"]
        ),
    )
    return f"http://{addresses[0]['value']}"


@pytest.fixture(scope="module")
def arena(control_plane: None, s3: Any, s3_secret: Json) -> Iterator[Arena]:
    with Namespace.fresh("t-gateway", s3_secret) as namespace:
        arena = Arena(namespace, s3)
        spec: Json = deployment.manifest(NAME, {})["spec"]
        # A gateway deals out an episode's requests to several servers, and its reward may find another one.
        # And on a machine that Envoy shares, how late an answer is says nothing of the policy.
        off = {"enabled": False}
        guards = {"errorRate": {"minimum": 50}, "fallbackRate": off, "latency": off}
        steps = [{"weight": 25, "minDuration": "5s", "approval": True}, {"weight": 50, "minDuration": "5s"}]
        namespace.apply(
            deployment.manifest(
                NAME,
                deployment.source(arena.policy("fair")),
                guards=guards,
                strategy={**spec["strategy"], "canary": {"steps": steps}},
                traffic={"gateway": {"httpRouteRef": {"name": GATEWAY}}},
            )
        )
        listener = {"name": "http", "protocol": "HTTP", "port": 80}
        namespace.apply(
            {
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "Gateway",
                "metadata": {"name": GATEWAY},
                "spec": {"gatewayClassName": CLASS, "listeners": [listener]},
            }
        )
        namespace.apply(
            {
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "HTTPRoute",
                "metadata": {"name": GATEWAY},
                "spec": {"parentRefs": [{"name": GATEWAY}], "rules": RULES},
            }
        )
        arena.settled("fair")
        yield arena


@pytest.fixture(scope="module")
def written(arena: Arena, url: str) -> Json:
    """The HTTPRoute's spec as the user wrote it, once players are answered through it."""
    arena.audience.start(f"--url={url}", "--rate=40", "--players=8", "--masked=25")
    eventually("the players are answered", lambda: (r := arena.audience.report()) and r["valid"] > 0)
    return spec_of_route(arena)


@pytest.fixture(autouse=True)
def _from_here(arena: Arena, written: Json) -> None:
    arena.mark()


def spec_of_route(arena: Arena) -> Json:
    found = arena.namespace.find("httproute", GATEWAY)
    assert found is not None
    return found["spec"]


def weights(arena: Arena) -> list[int]:
    return [ref["weight"] for ref in spec_of_route(arena)["rules"][1]["backendRefs"]]


def test_a_better_policy_takes_over_by_the_routes_weights(arena: Arena, url: str, written: Json) -> None:
    fair, good = arena.policy("fair"), arena.offer("good")
    eventually("it waits for approval", lambda: _reason(arena) == "AwaitingApproval")

    route = spec_of_route(arena)
    assert weights(arena) == [75, 25]
    (_, arm) = route["rules"][1]["backendRefs"]
    assert arm == {**written["rules"][1]["backendRefs"][0], "name": arm["name"], "weight": 25}
    assert [route["rules"][0], {**route["rules"][1], "backendRefs": None}] == [
        written["rules"][0],
        {**written["rules"][1], "backendRefs": None},
    ]
    said = arena.namespace.kubectl("exec", arena.audience.pod, "--", "python", "-c", ASK, url, "400")
    answers = Counter(tuple(line.split()) for line in said.splitlines())
    assert set(answers) == {(fair.policy, "gateway"), (good.policy, "gateway")}
    # Four standard deviations of 400 requests at 25%.
    assert abs(answers[good.policy, "gateway"] / 400 - 0.25) < 0.087, answers
    arena.namespace.kubectl("annotate", "rlpd", NAME, "--overwrite", "ratchet.dev/rollout=resume/1")

    past = arena.ended(good)

    assert past["outcome"] == "Promoted", past
    assert spec_of_route(arena) == written
    eventually("the policy before has no pod left", lambda: len(arena.servers()) == 2)
    report = arena.assert_nobody_noticed()
    assert report["policies"][good.policy]["answers"] > 0


def test_a_bad_policy_leaves_the_route(arena: Arena, written: Json) -> None:
    bad = arena.offer("NaN")

    past = arena.ended(bad)

    assert past["outcome"] == "Failed", past
    records = [one for one in arena.status()["decisions"] if one["action"] == "RollBack"]
    assert records[-1]["guard"] == "nan", records
    assert spec_of_route(arena) == written
    eventually("the bad policy has no pod left", lambda: len(arena.servers()) == 2)
    arena.assert_nobody_noticed(evicted=bad.policy)


def test_without_a_route_nothing_is_tried_and_it_says_what_to_write(arena: Arena, written: Json) -> None:
    arena.patch({"traffic": {"gateway": {"httpRouteRef": {"name": "nowhere"}}}})
    good = arena.offer("good too")

    eventually("it says so", lambda: _reason(arena) == "HTTPRouteNotFound")

    assert "backendRefs" in condition(arena.get(), "Progressing")["message"]
    assert arena.status().get("trial") is None
    arena.patch({"traffic": {"gateway": {"httpRouteRef": {"name": GATEWAY}}}})
    eventually("it waits for approval", lambda: _reason(arena) == "AwaitingApproval")
    arena.namespace.kubectl("annotate", "rlpd", NAME, "--overwrite", "ratchet.dev/rollout=promote/1")
    assert arena.ended(good)["outcome"] == "Promoted"
    assert spec_of_route(arena) == written
    arena.assert_nobody_noticed()


def _reason(arena: Arena) -> str:
    return condition(arena.get(), "Progressing").get("reason", "")
