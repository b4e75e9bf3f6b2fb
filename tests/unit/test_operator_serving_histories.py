"""PolicyDeployments over random histories: specs that change in a trial, orders, lost pods, drift, forged
statuses, spoilt ledgers, servers that can't be asked, and operators that die after any write.

`ServingWorld` holds at each write and each request that nobody is sent to what is not ready, and that nothing
is taken away which serves or is still sent to. Here: every history comes to an end, and then nobody writes.
"""

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ratchet_operator.kinds import CONFIG_MAP, DEPLOYMENT, POD, SERVICE, name_of, spec_of, status_of
from servingworld import NAME, POLICIES, REPLICAS, ServingWorld, digest_of, source

VERBS = ("promote", "pause", "resume", "abort", "undo", "retry")


def change_source(world: ServingWorld, choice: int) -> None:
    world.edit(source=source(POLICIES[choice % len(POLICIES)]))


def change_server(world: ServingWorld, choice: int) -> None:
    world.edit(server={"resources": {"requests": {"cpu": str(1 + choice % 2)}}})


def change_replicas(world: ServingWorld, choice: int) -> None:
    world.edit(replicas=1 + choice % 3)


def change_strategy(world: ServingWorld, choice: int) -> None:
    kept = {**spec_of(world.deployment)["strategy"], "type": ("Canary", "AllAtOnce")[choice % 2]}
    world.edit(strategy=kept)


def order(world: ServingWorld, choice: int) -> None:
    world.order(f"{VERBS[choice % len(VERBS)]}/{choice}")


def lose_a_pod(world: ServingWorld, choice: int) -> None:
    pods = world.all(POD)
    if pods:
        victim = pods[choice % len(pods)]
        world.delete("Pod", name_of(victim))
        world.bereaved = True


def lose_a_child(world: ServingWorld, choice: int) -> None:
    children = [*world.all(DEPLOYMENT), *world.all(SERVICE)]
    if children:
        victim = children[choice % len(children)]
        world.delete(victim["kind"], name_of(victim))
        world.bereaved = True


def drift(world: ServingWorld, choice: int) -> None:
    for deployment in world.all(DEPLOYMENT):
        world.put({**deployment, "spec": {**spec_of(deployment), "replicas": 1 + choice % 5}})
    world.bereaved = True


def wipe_status(world: ServingWorld, choice: int) -> None:
    world.deployment["status"] = {}


def forge_status(world: ServingWorld, choice: int) -> None:
    other = {"digest": digest_of("best"), "revision": "00000000", "weight": 100}
    world.deployment["status"] = {"stable": other, "history": [], "trial": None, "command": "undo/9"}


def ask_for_sleep(world: ServingWorld, choice: int) -> None:
    world.edit(scaleToZeroAfter=(None, "10s", "15s")[choice % 3])


def be_still(world: ServingWorld, choice: int) -> None:
    world.edit(scaleToZeroAfter="10s")
    world.is_busy = False
    world.seconds(25)
    world.is_busy = bool(choice % 2)


def spoil_ledger(world: ServingWorld, choice: int) -> None:
    config_map = world.get(CONFIG_MAP, f"{NAME}-rollout")
    if config_map is not None:
        world.loses_its_way()
        text = ("{", '{"state": {"stable": 3}}', "null")[choice % 3]
        annotations = {**config_map["metadata"].get("annotations", {}), "ratchet.dev/ledger": text}
        world.put({**config_map, "metadata": {**config_map["metadata"], "annotations": annotations}})


def lose_ledger(world: ServingWorld, choice: int) -> None:
    world.loses_its_way()
    world.delete("ConfigMap", f"{NAME}-rollout")


def lose_reach(world: ServingWorld, choice: int) -> None:
    world.is_reachable = not world.is_reachable


def traffic_stops_or_comes(world: ServingWorld, choice: int) -> None:
    world.is_busy = not world.is_busy


def time_passes(world: ServingWorld, choice: int) -> None:
    world.seconds(1 + choice % 8)


def operator_dies(world: ServingWorld, choice: int) -> None:
    world.turn()
    world.ask_for_actions()
    world.ask()
    world.crash(choice % 6)


def operator_restarts(world: ServingWorld, choice: int) -> None:
    world.restart()


HAPPENINGS = [
    change_source, change_source, change_server, change_replicas, change_strategy, order, order, lose_a_pod,
    lose_a_child, drift, wipe_status, forge_status, spoil_ledger, lose_ledger, lose_reach,
    traffic_stops_or_comes, ask_for_sleep, be_still, be_still, operator_dies, operator_dies,
    operator_restarts,
    time_passes, time_passes, time_passes, time_passes,
]  # fmt: skip
HISTORIES = st.lists(st.tuples(st.sampled_from(HAPPENINGS), st.integers(0, 30)), max_size=20)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HISTORIES)
@example([(be_still, 1), (lose_ledger, 0)])
def test_every_history_comes_to_an_end_and_then_nobody_writes(history):
    world = ServingWorld()
    for happening, choice in history:
        happening(world, choice)
        if happening is not time_passes:
            world.second()
    world.is_reachable = world.is_busy = True
    world.edit(paused=False, source=source("best"))
    world.order("resume/fair")
    world.seconds(2)
    world.order("retry/fair")

    world.settle(600)

    writes = world.writes
    world.seconds(20)
    assert world.writes == writes
    assert world.serving == "best"
    assert (world.failed, world.held) == (0, 0)
    (deployment,) = world.all(DEPLOYMENT)
    assert deployment["spec"]["replicas"] == spec_of(world.deployment).get("replicas", REPLICAS)
    assert str(world.selected()) in name_of(deployment)
    assert status_of(world.deployment)["stable"]["weight"] == 100
