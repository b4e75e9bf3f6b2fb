"""An RLTrainingJob on the real cluster: it learns, survives, stops, resumes, and leaves nothing behind."""

import json
from typing import Any

import pytest
from cluster import Json, Namespace, condition, eventually, progress
from jobs import (
    assert_steps_are_the_accepted_fragments,
    assert_the_return_goes_on,
    checkpointed,
    one_pod,
    training,
)

LEARNED = 475.0


def test_the_cartpole_job_learns_and_succeeds(namespace: Namespace, cartpole: Json, s3: Any) -> None:
    namespace.apply(cartpole)

    job = eventually(
        "the job ends",
        lambda: (
            (j := namespace.find("rlj", "cartpole"))
            and (condition(j, "Succeeded") or condition(j, "Failed")).get("status") == "True"
            and j
        ),
        deadline=300,
    )

    assert condition(job, "Succeeded")["reason"] == "TargetReturnReached", json.dumps(job["status"], indent=1)
    result = job["status"]["evaluation"]["latest"]
    assert result["episodes"] >= 100
    assert result["meanReturn"] >= LEARNED
    best = job["status"]["checkpoints"]["best"]
    bucket, _, key = best["uri"].removeprefix("s3://").partition("/")
    manifest = json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    assert manifest["steps"] == best["steps"]
    eventually("the pods of a finished job are gone", lambda: not namespace.list("pods"), deadline=90)


def test_a_deleted_trainer_resumes_from_its_checkpoint(namespace: Namespace, endless: Json) -> None:
    namespace.apply(endless)
    before = eventually("one trainer runs", lambda: one_pod(namespace, "trainer", "endless"))
    eventually("a checkpoint knows of returns", lambda: _knows_of_returns(namespace))

    namespace.kubectl("delete", "pod", before["metadata"]["name"], "--grace-period=0", "--force")

    after = eventually(
        "a trainer took over",
        lambda: (
            (pod := one_pod(namespace, "trainer", "endless"))
            and pod["metadata"]["uid"] != before["metadata"]["uid"]
            and pod
        ),
    )
    then = namespace.find("rlj", "endless") or {}
    saved, so_far = then["status"]["checkpoints"]["latest"], progress(then)
    log = eventually(
        "the new trainer says where it went on",
        lambda: next(
            (
                line
                for line in namespace.logs(after["metadata"]["name"]).splitlines()
                if "resumed" in line.lower()
            ),
            None,
        ),
    )
    assert "manifests/" in log
    job = eventually("the job counts on", lambda: training(namespace, "endless", so_far["steps"]))
    assert_the_return_goes_on(so_far, progress(job), until=saved["steps"])
    newer = eventually(
        "it goes on past the old checkpoint", lambda: checkpointed(namespace, "endless", saved["steps"])
    )
    assert newer["steps"] > saved["steps"]
    assert_steps_are_the_accepted_fragments(job)
    assert job["status"].get("failuresCounted", 0) == 0, "a deleted pod is nobody's failure"


def _knows_of_returns(namespace: Namespace) -> bool:
    """Whether the newest checkpoint is from after the first episodes."""
    job = namespace.find("rlj", "endless") or {}
    saved = job.get("status", {}).get("checkpoints", {}).get("latest")
    curve = progress(job).get("curve")
    return bool(saved and curve) and curve[0]["steps"] <= saved["steps"]


def test_suspend_stops_every_pod_and_resume_goes_on(namespace: Namespace, endless: Json) -> None:
    namespace.apply(endless)
    eventually("a checkpoint is there", lambda: checkpointed(namespace, "endless"))

    namespace.patch("rlj", "endless", {"spec": {"suspend": True}})

    eventually("no pod is left", lambda: not namespace.list("pods"))
    suspended = eventually(
        "the condition says so",
        lambda: (
            (j := namespace.find("rlj", "endless"))
            and condition(j, "Suspended").get("status") == "True"
            and j
        ),
    )
    before = progress(suspended)

    namespace.patch("rlj", "endless", {"spec": {"suspend": False}})

    resumed = eventually("it goes on from there", lambda: training(namespace, "endless", before["steps"]))
    assert condition(resumed, "Suspended").get("status") != "True"
    assert_the_return_goes_on(before, progress(resumed), until=before["steps"])
    assert_steps_are_the_accepted_fragments(resumed)


def test_deleting_the_job_leaves_nothing_but_s3_data(namespace: Namespace, endless: Json, s3: Any) -> None:
    namespace.apply(endless)
    saved = eventually("a checkpoint is there", lambda: checkpointed(namespace, "endless"))
    assert namespace.children("endless")

    namespace.kubectl("delete", "rlj", "endless", "--wait")

    eventually("no child is left", lambda: not namespace.children("endless"))
    bucket, _, key = saved["uri"].removeprefix("s3://").partition("/")
    folder = key.rpartition("/")[0]
    assert s3.list_objects_v2(Bucket=bucket, Prefix=folder)["KeyCount"] > 0


def test_the_same_name_again_is_a_new_job(namespace: Namespace, endless: Json) -> None:
    namespace.apply(endless)
    first = eventually("a checkpoint is there", lambda: checkpointed(namespace, "endless"))
    namespace.kubectl("delete", "rlj", "endless", "--wait")

    namespace.apply(endless)

    second = eventually("the second job has a checkpoint", lambda: checkpointed(namespace, "endless"))
    assert first["uri"].rsplit("/", 2)[0] != second["uri"].rsplit("/", 2)[0]
    assert_steps_are_the_accepted_fragments(eventually("it trains", lambda: training(namespace, "endless")))


def test_an_operator_killed_mid_run_changes_nothing(namespace: Namespace, endless: Json) -> None:
    namespace.apply(endless)
    eventually("it trains", lambda: training(namespace, "endless"))
    before = namespace.children("endless")
    operator = Namespace("ratchet-system")
    selector = "app.kubernetes.io/name=ratchet"
    old = {pod["metadata"]["uid"] for pod in operator.list("pods", selector)}

    operator.kubectl("delete", "pods", "-l", selector, "--grace-period=0", "--force")

    eventually(
        "another operator is ready",
        lambda: any(
            pod["metadata"]["uid"] not in old
            and any(
                c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", [])
            )
            for pod in operator.list("pods", selector)
        ),
    )
    then = progress(namespace.find("rlj", "endless"))["steps"]
    job = eventually("the new operator follows the training", lambda: training(namespace, "endless", then))
    assert namespace.children("endless") == before
    assert_steps_are_the_accepted_fragments(job)


@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [
        ("deployment", "endless-trainer", {"spec": {"replicas": 0}}),
        (
            "deployment",
            "endless-redis",
            {"spec": {"template": {"spec": {"automountServiceAccountToken": True}}}},
        ),
        ("service", "endless-redis", {"spec": {"selector": {"app.kubernetes.io/component": "nobody"}}}),
        ("rolloutpool", "endless-rollouts", {"spec": {"suspend": True}}),
    ],
)
def test_a_changed_child_is_repaired(
    namespace: Namespace, endless: Json, kind: str, name: str, change: Json
) -> None:
    namespace.apply(endless)
    eventually("it trains", lambda: training(namespace, "endless"))
    wanted = (namespace.find(kind, name) or {})["spec"]

    namespace.patch(kind, name, change)

    eventually("the child is as it was", lambda: (namespace.find(kind, name) or {}).get("spec") == wanted)
    then = progress(namespace.find("rlj", "endless"))["steps"]
    job = eventually("training goes on", lambda: training(namespace, "endless", then))
    assert_steps_are_the_accepted_fragments(job)


@pytest.mark.parametrize(
    "child",
    [
        "service/endless-redis",
        "configmap/endless-config",
        "secret/endless-redis",
        "rolloutpool/endless-rollouts",
    ],
)
def test_a_deleted_child_comes_back_and_training_goes_on(
    namespace: Namespace, endless: Json, child: str
) -> None:
    namespace.apply(endless)
    eventually("a checkpoint is there", lambda: checkpointed(namespace, "endless"))
    kind, _, name = child.partition("/")

    namespace.kubectl("delete", kind, name, "--wait")

    eventually("the child is back", lambda: namespace.find(kind, name), deadline=700)
    then = progress(namespace.find("rlj", "endless"))["steps"]
    job = eventually("training goes on", lambda: training(namespace, "endless", then))
    assert_steps_are_the_accepted_fragments(job)


def test_without_a_gpu_it_trains_on_cpu_and_says_so(namespace: Namespace, endless: Json) -> None:
    endless["spec"]["trainer"] = {"gpu": {"count": 1, "fallback": "CPU"}}

    namespace.apply(endless)

    job = eventually("it trains", lambda: training(namespace, "endless"))
    said = condition(job, "AcceleratorReady")
    assert (said["status"], said["reason"]) == ("False", "FallbackCPU")
    assert job["status"]["device"] == "CPU"


def test_without_a_gpu_and_without_fallback_it_says_what_it_waits_for(
    namespace: Namespace, endless: Json
) -> None:
    endless["spec"]["trainer"] = {"gpu": {"count": 1, "fallback": "None"}}

    namespace.apply(endless)

    said = eventually(
        "the condition is there",
        lambda: condition(namespace.find("rlj", "endless"), "AcceleratorReady"),
    )
    assert said["reason"] == "WaitingForGPU"
    assert "nvidia.com/gpu" in said["message"]


def test_an_unknown_environment_fails_the_job_with_a_suggestion(namespace: Namespace, endless: Json) -> None:
    endless["spec"]["environment"]["id"] = "CartPol-v1"

    namespace.apply(endless)

    said = eventually(
        "the job fails",
        lambda: (c := condition(namespace.find("rlj", "endless"), "Failed")).get("status") == "True" and c,
    )
    assert said["reason"] == "ConfigurationError"
    assert "CartPole-v1" in said["message"]


def test_a_missing_secret_is_named_while_the_job_waits(namespace: Namespace, endless: Json) -> None:
    endless["spec"]["checkpoint"]["s3"]["secretRef"]["name"] = "not-there"

    namespace.apply(endless)

    said = eventually(
        "the condition names the Secret",
        lambda: (
            (c := condition(namespace.find("rlj", "endless"), "Progressing"))
            and "not-there" in c["message"]
            and c
        ),
    )
    assert said["status"] == "False"


def test_a_finished_job_with_a_time_to_live_goes_by_itself(namespace: Namespace, endless: Json) -> None:
    endless["spec"]["environment"]["id"] = "NoSuchEnvironment-v0"
    endless["spec"]["ttlSecondsAfterFinished"] = 1
    namespace.apply(endless)
    eventually("there is a Service", lambda: namespace.find("service", "endless-redis"))

    eventually("the job is gone", lambda: namespace.find("rlj", "endless") is None)

    eventually("nothing of it is left", lambda: not namespace.children("endless"))
