"""PolicyDeployments in a small cluster: what serves, what is tried, and what becomes of it."""

import copy
from datetime import timedelta

import pytest
from ratchet_operator.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    POLICY_DEPLOYMENT,
    SERVICE,
    name_of,
    spec_of,
    status_of,
)
from ratchet_operator.ledger import parse_stamp
from ratchet_operator.settings import Installation
from servingworld import NAME, REPLICAS, SPEC, ServingWorld, digest_of, source


def test_the_first_policy_serves_once_its_servers_were_asked():
    world = ServingWorld()

    world.settle()

    assert world.serving == "good"
    assert world.reason("Available") == "ServersReady"
    assert world.answered["good"] > 0


def test_a_better_policy_takes_over_by_stages_and_nobody_notices():
    world = ServingWorld()
    world.settle()

    world.edit(source=source("better"))
    world.settle()

    assert world.serving == "better"
    assert world.failed == 0
    stages = [
        event for event in world.events if event in ("WeightRaised", "StagePassed", "Baking", "Promoted")
    ]
    assert stages[-7:] == [
        "WeightRaised", "StagePassed", "WeightRaised", "StagePassed", "WeightRaised", "Baking", "Promoted",
    ]  # fmt: skip
    assert len(world.all(DEPLOYMENT)) == 1
    assert {name_of(one) for one in world.all(SERVICE)} == {NAME, name_of(world.all(DEPLOYMENT)[0])}


def test_a_worse_policy_is_taken_out_and_not_tried_again():
    world = ServingWorld()
    world.settle()

    world.edit(source=source("worse"))
    world.settle()

    status = status_of(world.deployment)
    assert (world.serving, world.reason(), world.reason("Degraded")) == ("good", "Quarantined", "Quarantined")
    assert [one["digest"] for one in status["quarantined"]] == [digest_of("worse")]
    assert status["history"][-1]["outcome"] == "Failed"
    (record,) = [one for one in status["decisions"] if one["action"] == "RollBack"]
    assert (record["guard"], record["verdict"]) == ("errorRate", "Fail")
    assert world.failed == 0


def test_a_policy_whose_servers_never_get_ready_ends_by_the_deadline():
    world = ServingWorld()
    world.settle()

    world.edit(source=source("broken"))
    world.settle()

    assert world.serving == "good"
    assert {one["outcome"] for one in status_of(world.deployment)["history"][1:]} == {"TimedOut"}
    assert world.reason() == "AttemptsExhausted"


def test_a_job_that_is_not_there_or_has_no_checkpoint_is_waited_for_and_its_end_ends_nothing():
    of_job = {"type": "TrainingJob", "trainingJob": {"jobRef": {"name": "job"}, "checkpoint": "Latest"}}
    world = ServingWorld()
    world.edit(source=of_job)
    world.settle()
    assert (world.reason(), world.all(DEPLOYMENT)) == ("JobNotFound", [])

    spec = {
        "environment": {"id": "CartPole-v1"},
        "algorithm": {"ppo": {"minibatchSize": 64}},
        "checkpoint": {"s3": {"bucket": "bucket"}},
        "stop": {"maxSteps": 1},
    }
    job = {"kind": "RLTrainingJob", "metadata": {"name": "job"}, "spec": spec}
    world.put(job)
    world.settle()
    assert (world.reason(), world.all(DEPLOYMENT)) == ("WaitingForCheckpoint", [])

    latest = {"name": "1", "uri": "s3://bucket/1.json", "digest": digest_of("good"), "steps": 1}
    latest = {**latest, "policyVersion": 1, "time": "2026-01-01T00:00:00Z"}
    world.put({**job, "status": {"attempt": 3, "checkpoints": {"latest": latest}}})
    world.settle()
    assert world.serving == "good"
    lineage = status_of(world.deployment)["stable"]["lineage"]
    assert lineage == {
        "job": "job",
        "checkpoint": "1",
        "steps": 1,
        "image": Installation().inference_image,
        "attempt": 2,
        "configuration": "sha256:as-it-was",
    }, "by its servers, whatever attempt the job is at"

    world.delete("RLTrainingJob", "job")
    world.settle()
    assert (world.serving, world.reason(), world.failed) == ("good", "JobNotFound", 0)


def test_a_third_version_takes_the_place_of_the_one_on_trial():
    world = ServingWorld()
    world.settle()
    world.edit(source=source("better"))
    world.seconds(5)
    assert world.trial is not None

    world.edit(source=source("best"))
    world.settle()

    assert world.serving == "best"
    assert [one["outcome"] for one in status_of(world.deployment)["history"]][1:] == [
        "Superseded",
        "Promoted",
    ]


def test_without_traffic_nothing_is_promoted_and_nothing_rolled_back():
    world = ServingWorld()
    world.settle()
    world.is_busy = False

    world.edit(source=source("better"))
    world.seconds(120)

    assert world.serving == "good"
    assert world.trial is not None
    assert world.reason() == "NotEnoughEvidence"


def test_a_server_of_other_resources_is_tried_like_another_policy():
    world = ServingWorld()
    world.settle()
    (before,) = [name_of(one) for one in world.all(DEPLOYMENT)]

    world.edit(server={"resources": {"requests": {"cpu": "2"}}})
    world.settle()

    (after,) = [name_of(one) for one in world.all(DEPLOYMENT)]
    assert before != after
    assert status_of(world.deployment)["history"][-1]["outcome"] == "Promoted"


def test_promote_skips_the_stages_and_undo_goes_back():
    world = ServingWorld()
    world.settle()
    world.edit(source=source("better"))
    world.seconds(3)
    world.order("promote/1")
    world.settle()
    assert world.serving == "better"

    world.order("undo/2")
    world.settle()

    assert world.serving == "good"
    assert status_of(world.deployment)["command"] == "undo/2"
    assert world.failed == 0


def test_a_pause_holds_a_stage_until_it_is_resumed():
    world = ServingWorld()
    world.settle()
    world.edit(source=source("better"))
    world.seconds(5)
    world.order("pause/1")
    world.seconds(60)
    assert world.reason() == "Paused"

    world.order("resume/2")
    world.settle()

    assert world.serving == "better"


def test_abort_goes_back_and_retry_tries_again():
    world = ServingWorld()
    world.settle()
    world.edit(source=source("better"))
    world.seconds(5)

    world.order("abort/1")
    world.settle()
    assert (world.serving, world.reason()) == ("good", "Quarantined")
    world.order("retry/2")
    world.settle()

    assert world.serving == "better"


@pytest.mark.parametrize("strategy", ["AllAtOnce", "BlueGreen", "Shadow"])
def test_every_strategy_comes_to_its_end(strategy: str):
    guards = ("errorRate", "fallbackRate", "latency", "maskViolations", "nan", "restarts")
    world = ServingWorld(guards={name: {"enabled": False} for name in guards})
    world.settle()
    then = {"shadow": {"minDuration": "3s", "then": "Promote"}, "bake": "2s"}

    world.edit(source=source("better"), strategy={"type": strategy, **then})
    world.settle()

    assert world.serving == "better"
    assert world.failed == 0


def test_a_shadow_sees_copies_and_answers_nobody():
    world = ServingWorld()
    world.settle()

    world.edit(source=source("better"), strategy={"type": "Shadow"})
    world.seconds(6)

    (route,) = [route for route in world.routes().values() if route.canary]
    assert (route.weight, route.mirror) == (0.0, 1.0)
    assert world.answered["better"] == 0


def test_the_ledger_that_somebody_destroyed_is_made_again_from_what_serves():
    world = ServingWorld()
    world.settle()
    config_map = world.get(CONFIG_MAP, f"{NAME}-rollout")
    assert config_map is not None

    world.put(
        {**config_map, "metadata": {**config_map["metadata"], "annotations": {"ratchet.dev/ledger": "{"}}}
    )
    world.settle()
    assert world.serving == "good"
    world.delete("ConfigMap", f"{NAME}-rollout")
    world.settle()

    assert world.serving == "good"
    assert world.failed == 0


def test_a_deleted_one_leaves_nothing_and_its_name_can_be_used_again():
    world = ServingWorld()
    world.settle()
    spec = copy.deepcopy(spec_of(world.deployment))

    world.delete("PolicyDeployment", NAME)
    assert world.objects == {}
    world.put({"kind": "PolicyDeployment", "metadata": {"name": NAME}, "spec": spec})
    world.restart()
    world.settle()

    assert world.serving == "good"


def test_an_autoscaler_asks_for_all_that_is_written_and_takes_its_time_to_go_down():
    world = ServingWorld(
        autoscaling={"maxReplicas": 8, "memoryPercent": 80, "requestsPerSecond": 900, "scaleDownAfter": "90s"}
    )
    world.settle()

    (scaler,) = [one for (kind, _), one in world.objects.items() if kind == "HorizontalPodAutoscaler"]
    (deployment,) = world.all(DEPLOYMENT)
    (server,) = deployment["spec"]["template"]["spec"]["containers"]
    cpu, memory, requests = scaler["spec"]["metrics"]
    assert [one["containerResource"]["container"] for one in (cpu, memory)] == [server["name"]] * 2
    assert cpu["containerResource"]["target"]["averageUtilization"] == 70
    assert memory["containerResource"]["target"]["averageUtilization"] == 80
    assert requests["pods"]["metric"] == {"name": "ratchet_requests_per_second"}
    assert requests["pods"]["target"]["averageValue"] == "900"
    assert scaler["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 90


def test_the_autoscalers_number_is_left_alone_and_stable_keeps_it_during_a_trial():
    world = ServingWorld(autoscaling={"maxReplicas": 8})
    world.settle()
    (scaler,) = [one for (kind, _), one in world.objects.items() if kind == "HorizontalPodAutoscaler"]
    (deployment,) = world.all(DEPLOYMENT)
    assert (scaler["spec"]["minReplicas"], deployment["spec"]["replicas"]) == (REPLICAS, REPLICAS)
    scaler["status"] = {"desiredReplicas": 5}
    world.put({**deployment, "spec": {**spec_of(deployment), "replicas": 5}})
    writes = world.writes
    world.settle()
    assert spec_of(world.get(DEPLOYMENT, name_of(deployment)))["replicas"] == 5
    assert world.writes <= writes + 2  # the status shows it

    world.edit(source=source("better"))
    world.seconds(5)
    scaler = world.objects["HorizontalPodAutoscaler", name_of(deployment)]
    assert scaler["spec"]["minReplicas"] == 5
    world.settle()

    assert world.serving == "better"
    (after,) = world.all(DEPLOYMENT)
    assert after["spec"]["replicas"] == 5
    assert world.get(POLICY_DEPLOYMENT, NAME) is not None


def test_the_cooldown_after_a_trial_is_told_with_its_end():
    world = ServingWorld(strategy={**SPEC["strategy"], "cooldown": "20s", "progressDeadline": "5s"})
    world.settle()
    world.edit(source=source("broken"))
    while world.reason() != "CoolingDown":
        assert world.ticks < 60
        world.second()

    status = status_of(world.deployment)
    end = parse_stamp(status["cooldownUntil"])
    assert end is not None
    assert end - world.now > timedelta(seconds=15)
    while world.now < end:
        assert (world.reason(), world.trial) == ("CoolingDown", None)
        world.second()
    assert world.trial is not None
    assert "cooldownUntil" not in status_of(world.deployment)
