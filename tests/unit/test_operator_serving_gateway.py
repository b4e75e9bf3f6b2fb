"""PolicyDeployments whose clients come through a gateway: its HTTPRoute has a share as long as a trial lasts,
nobody is lost by the second that it lags behind.
"""

from typing import Any

import pytest
from gatewayworld import NAME, ROUTE, RULES, TRAFFIC, GatewayWorld, ref
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ratchet_operator.kinds import HTTP_ROUTE, POLICY_DEPLOYMENT, Json, spec_of, status_of
from servingworld import POLICIES, source

Happening = tuple[str, int]


def rules(world: GatewayWorld) -> list[Json]:
    return spec_of(world.route)["rules"]


def trial_of(world: GatewayWorld) -> str:
    """The arm that has a share of the route."""
    return next(name for name in world.weights if name != NAME).removeprefix(f"{NAME}-")


def test_the_route_has_the_share_of_each_stage_and_in_the_end_what_the_user_wrote() -> None:
    world = GatewayWorld()
    world.settle()
    seen: list[int] = []

    world.edit(source=source("better"))
    while world.serving != "better":
        world.second()
        seen += [weight for name, weight in world.weights.items() if name != NAME]
        assert rules(world)[0] == RULES[0]
    world.settle()

    assert list(dict.fromkeys(seen)) == [20, 50, 100]
    assert rules(world) == RULES
    assert world.failed == 0


def test_both_arms_have_one_rule_for_episodes_and_the_way_to_each_other() -> None:
    world = GatewayWorld()
    world.settle()

    world.edit(source=source("better"))
    while len(world.weights) == 1:
        world.second()

    stable, trial = world.routes()[str(world.selected())], world.routes()[trial_of(world)]
    assert (stable.gateway, trial.gateway) == ("Stable", "Canary")
    assert (stable.weight, stable.salt) == (trial.weight, trial.salt) == (0.2, stable.salt)
    assert (stable.digest, trial.digest) == ("better", "good")
    assert stable.canary == f"http://{NAME}-{trial_of(world)}:8080"
    assert trial.canary == f"http://{NAME}-{world.selected()}:8080"


def test_a_worse_policy_leaves_the_route_and_then_goes() -> None:
    world = GatewayWorld()
    world.settle()

    world.edit(source=source("worse"))
    world.settle()

    assert (world.serving, world.reason()) == ("good", "Quarantined")
    assert rules(world) == RULES
    assert world.failed == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda world: world.delete("HTTPRoute", ROUTE), "HTTPRouteNotFound"),
        (lambda world: world.write_route([{"backendRefs": [ref("assets")]}]), "HTTPRouteWithoutBackend"),
        (lambda world: world.route.update(status={}), "HTTPRouteNotAccepted"),
    ],
)
def test_without_a_route_it_serves_and_tries_nothing_and_says_why(change: Any, reason: str) -> None:
    world = GatewayWorld()
    world.settle()
    world.is_programming = False
    change(world)

    world.edit(source=source("better"))
    world.seconds(60)

    assert (world.serving, world.trial, world.reason()) == ("good", None, reason)
    assert len(status_of(world.deployment)["history"]) == 1
    world.is_programming = True
    world.write_route(RULES)
    world.settle()
    assert world.serving == "better"


def test_a_gateway_that_takes_nothing_more_ends_the_trial_by_its_deadline_and_keeps_its_servers() -> None:
    world = GatewayWorld()
    world.settle()
    world.is_programming = False

    world.edit(source=source("better"))
    world.seconds(90)

    assert world.trial is not None
    assert world.trial["phase"] == "RollBack", "nobody knows whether the gateway sends there"
    world.is_programming = True
    world.edit(source=source("good"))
    world.settle()
    assert world.serving == "good"
    assert rules(world) == RULES


def test_a_route_that_the_spec_no_longer_names_is_given_back() -> None:
    world = GatewayWorld()
    world.settle()
    world.edit(source=source("better"))
    while len(world.weights) == 1:
        world.second()

    world.edit(traffic={})
    world.settle()

    assert rules(world) == RULES
    assert world.serving == "better"


def test_what_somebody_writes_meanwhile_stands() -> None:
    world = GatewayWorld()
    world.settle()
    world.edit(source=source("better"))
    while len(world.weights) == 1:
        world.second()
    others = [RULES[0], {**RULES[1], "backendRefs": [ref("elsewhere", 300), ref(NAME, 100)]}]

    world.write_route(others)
    world.seconds(2)
    assert world.weights["elsewhere"] == 300
    assert len(world.weights) == 3
    world.settle()

    assert rules(world) == others


HAPPENINGS = ("source", "source", "dies", "dies", "restart", "time", "time", "time", "rules", "named", "lost")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(HAPPENINGS), st.integers(0, 30)), max_size=16))
def test_after_every_history_the_route_is_the_users(history: list[Happening]) -> None:
    world = GatewayWorld()
    wanted = RULES
    for happening, choice in history:
        match happening:
            case "source":
                world.edit(source=source(POLICIES[choice % len(POLICIES)]))
            case "dies":
                world.turn()
                world.ask_for_actions()
                world.ask()
                world.crash(choice % 6)
            case "restart":
                world.restart()
            case "rules":
                weight = 100 * (1 + choice % 3)
                wanted = [RULES[0], {**RULES[1], "backendRefs": [ref("elsewhere", 100), ref(NAME, weight)]}]
                world.write_route(wanted)
            case "named":
                world.edit(traffic=(TRAFFIC, {})[choice % 2])
            case "lost":
                world.delete("ConfigMap", f"{NAME}-rollout")
            case _:
                world.seconds(1 + choice % 8)
        world.second()
    world.edit(source=source("best"), traffic=TRAFFIC)
    world.seconds(2)
    world.order("retry/fair")

    world.settle(600)

    assert world.serving == "best"
    assert rules(world) == wanted
    assert world.failed == 0
    assert world.get(HTTP_ROUTE, ROUTE) is not None
    assert world.get(POLICY_DEPLOYMENT, NAME) is not None
