"""Scale to zero as a whole: what the operator writes, in which order, and what a client meets meanwhile."""

import pytest
from ratchet_operator.build.waking import MANAGER, MANAGER_LABEL, SERVICE_LABEL, door_name
from ratchet_operator.kinds import (
    AUTOSCALER,
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    ENDPOINT_SLICE,
    POD,
    labels_of,
    status_of,
)
from servingworld import NAME, REPLICAS, ServingWorld, source
from world import condition

AUTOSCALED = {"autoscaling": {"maxReplicas": 4}}


def awake(**spec: object) -> ServingWorld:
    """Something serves, under load, and may sleep."""
    world = ServingWorld(scaleToZeroAfter="10s", **spec)
    world.settle()
    assert (world.serving, len(world.all(POD))) == ("good", REPLICAS)
    return world


def asleep(**spec: object) -> ServingWorld:
    world = awake(**spec)
    world.is_busy = False
    world.seconds(25)
    assert world.all(POD) == []
    return world


def replicas(world: ServingWorld) -> int:
    (deployment,) = world.all(DEPLOYMENT)
    return deployment["spec"]["replicas"]


def test_while_anybody_asks_nobody_sleeps():
    world = awake()
    world.seconds(60)
    assert (world.events.count("ScaledToZero"), replicas(world)) == (0, REPLICAS)
    assert world.get(ENDPOINT_SLICE, door_name(NAME)) is None


def test_without_the_field_nobody_sleeps():
    world = ServingWorld()
    world.settle()
    world.is_busy = False
    world.seconds(300)
    assert replicas(world) == REPLICAS


def test_it_says_that_it_sleeps_and_that_this_is_well():
    world = asleep()
    assert world.events[-1] == "ScaledToZero"
    told = {kind: condition(world.deployment, kind) for kind in ("Available", "Progressing", "Degraded")}
    assert {kind: (one["status"], one["reason"]) for kind, one in told.items()} == {
        "Available": ("True", "ScaledToZero"),
        "Progressing": ("True", "ScaledToZero"),
        "Degraded": ("False", "AsWanted"),
    }
    arm = status_of(world.deployment)["stable"]
    assert (arm["replicas"], arm["ready"], arm["weight"]) == (0, 0, 100)


def test_clients_find_the_operator_beside_the_service():
    world = asleep()
    slice_ = world.get(ENDPOINT_SLICE, door_name(NAME))
    assert slice_ is not None
    assert labels_of(slice_)[SERVICE_LABEL] == NAME
    assert labels_of(slice_)[MANAGER_LABEL] == MANAGER
    assert slice_["endpoints"] == [{"addresses": [world.door.host], "conditions": {"ready": True}}]
    assert [(one["name"], one["port"]) for one in slice_["ports"]] == [("http", world.door.port)]


@pytest.mark.parametrize("spec", [{}, AUTOSCALED])
def test_a_request_wakes_it_and_is_answered(spec: dict[str, object]):
    world = asleep(**spec)
    assert len(world.all(AUTOSCALER)) == len(spec)
    assert len(world.all(DISRUPTION_BUDGET)) == 1

    world.is_busy = True
    world.second()
    assert world.held
    assert world.events[-1] == "Woken"
    assert replicas(world) == REPLICAS
    world.settle()

    assert (world.held, world.failed, world.serving) == (0, 0, "good")
    assert world.events[-1] == "Awake"
    assert world.get(ENDPOINT_SLICE, door_name(NAME)) is None
    world.seconds(60)
    assert world.events.count("ScaledToZero") == 1


def test_it_sleeps_again():
    world = asleep()
    for _ in range(2):
        world.is_busy = True
        world.seconds(10)
        world.is_busy = False
        world.seconds(30)
    assert (world.events.count("ScaledToZero"), world.events.count("Awake")) == (3, 2)
    assert world.all(POD) == []


def test_an_open_episode_keeps_it_awake():
    world = awake()
    world.is_busy = False
    for server in world.servers.values():
        server.websockets = 1
    world.seconds(60)
    assert replicas(world) == REPLICAS


def test_a_request_that_comes_while_the_door_is_new_ends_the_nap():
    world = awake()
    world.is_busy = False
    while world.get(ENDPOINT_SLICE, door_name(NAME)) is None:
        world.second()
    assert replicas(world) == REPLICAS

    world.knocked = world.now
    world.seconds(3)

    assert world.get(ENDPOINT_SLICE, door_name(NAME)) is None
    assert replicas(world) == REPLICAS


def test_another_policy_waits_for_requests_and_is_then_tried():
    world = asleep()
    world.edit(source=source("better"))
    world.seconds(60)
    assert (world.trial, world.all(POD)) == (None, [])
    assert "Another policy is tried" in condition(world.deployment, "Progressing")["message"]

    world.is_busy = True
    world.settle()

    assert (world.serving, world.failed) == ("better", 0)


@pytest.mark.parametrize("why", ["command", "field"])
def test_what_else_wakes_it(why: str):
    world = asleep()
    if why == "command":
        world.order("promote/1")
    else:
        world.edit(scaleToZeroAfter=None)
    world.seconds(10)
    assert (world.events.count("Awake"), replicas(world)) == (1, REPLICAS)


def test_an_operator_without_a_port_wakes_it():
    world = asleep()
    world.has_port = False
    world.loses_its_way()
    world.seconds(10)
    assert replicas(world) == REPLICAS
    world.seconds(60)
    assert world.events.count("ScaledToZero") == 1


def test_the_next_operator_opens_a_door_of_its_own():
    world = asleep()
    world.restart()
    assert not world.is_door_open
    world.second()
    assert world.is_door_open
    assert world.all(POD) == []
    world.is_busy = True
    world.settle()
    assert (world.held, world.failed) == (0, 0)


def test_who_sleeps_is_stable_also_without_a_ledger():
    world = asleep()
    world.loses_its_way()
    world.delete(CONFIG_MAP.kind, f"{NAME}-rollout")
    world.is_busy = True
    world.settle()
    assert (world.serving, world.events.count("TrialStarted")) == ("good", 1)
