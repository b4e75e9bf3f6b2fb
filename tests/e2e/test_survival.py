"""What a running job survives on the real cluster, and what it says of input that cannot work."""

import hashlib
import json
import subprocess
from collections.abc import Callable
from math import isfinite
from typing import Any

import pytest
from arena import NAME, Arena
from cluster import Json, Namespace, condition, eventually, progress
from jobs import assert_steps_are_the_accepted_fragments, checkpointed, evict, one_pod, training
from rollouts import deployment

OPERATOR = Namespace("ratchet-system")
METRICS = "/api/v1/namespaces/ratchet-system/services/ratchet-metrics:8080/proxy/metrics"


def writes_and_lease_reads() -> tuple[Json, float]:
    """What the operator wrote since it started, its Lease apart; how often it looked at the Lease."""
    lines = [
        line.rpartition(" ")
        for line in OPERATOR.kubectl("get", "--raw", METRICS).splitlines()
        if line.startswith(("ratchet_api_writes_total{", "ratchet_api_reads_total{"))
    ]
    writes = {name: float(count) for name, _, count in lines if "writes" in name and "Lease" not in name}
    reads = sum(float(count) for name, _, count in lines if "reads" in name and "Lease" in name)
    return writes, reads


def said(namespace: Namespace, kind: str, *words: str) -> Callable[[], Json | None]:
    """The condition of that type, once its message holds all the words."""

    def found() -> Json | None:
        it = condition(namespace.find("rlj", "endless"), kind)
        return it if it and all(word in it["message"] for word in words) else None

    return found


@pytest.mark.parametrize("component", ["rollouts", "redis"])
def test_a_killed_pod_costs_seconds_and_no_step(namespace: Namespace, endless: Json, component: str) -> None:
    namespace.apply(endless)
    eventually("a checkpoint is there", lambda: checkpointed(namespace, "endless"))
    pod = eventually("one pod runs", lambda: one_pod(namespace, component, "endless"))

    namespace.kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")

    other = eventually(
        "another pod takes its place",
        lambda: (
            (p := one_pod(namespace, component, "endless"))
            and p["metadata"]["uid"] != pod["metadata"]["uid"]
            and all(c["ready"] for c in p["status"].get("containerStatuses", [{"ready": False}]))
            and p
        ),
    )
    assert other["metadata"]["uid"] != pod["metadata"]["uid"]
    then = progress(namespace.find("rlj", "endless"))["steps"]
    job = eventually("training goes on", lambda: training(namespace, "endless", then))
    assert_steps_are_the_accepted_fragments(job)
    assert job["status"].get("failuresCounted", 0) == 0


def test_a_worker_that_is_evicted_again_and_again_is_replaced_each_time_at_once(
    namespace: Namespace, endless: Json
) -> None:
    """Each within 30 s, where a Job would wait for 40 with the third."""
    namespace.apply(endless)
    eventually("it trains", lambda: training(namespace, "endless"))
    for _ in range(3):
        pod = eventually("one worker runs", lambda: one_pod(namespace, "rollouts", "endless"))

        evict(namespace, pod)

        eventually(
            "another takes its place",
            lambda gone=pod["metadata"]["uid"]: (
                (p := one_pod(namespace, "rollouts", "endless")) and p["metadata"]["uid"] != gone
            ),
            deadline=30,
        )
    then = progress(namespace.find("rlj", "endless"))["steps"]
    job = eventually("training goes on", lambda: training(namespace, "endless", then))
    assert_steps_are_the_accepted_fragments(job)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_an_event_says_so(
    namespace: Namespace, endless: Json, s3: Any
) -> None:
    namespace.apply(endless)
    first = eventually("a checkpoint is there", lambda: checkpointed(namespace, "endless"))
    eventually("and another", lambda: checkpointed(namespace, "endless", first["steps"]))
    namespace.patch("rlj", "endless", {"spec": {"suspend": True}})
    eventually("no pod is left", lambda: not namespace.list("pods"))
    bucket, _, key = first["uri"].removeprefix("s3://").partition("/")
    job_prefix = key.rpartition("/manifests/")[0]
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=f"{job_prefix}/manifests/")["Contents"]
    newest = sorted(entry["Key"] for entry in listed)[-1]
    manifest = json.loads(s3.get_object(Bucket=bucket, Key=newest)["Body"].read())
    blob = f"{job_prefix}/blobs/sha256/{manifest['blobs']['state']['sha256']}"
    whole = s3.get_object(Bucket=bucket, Key=blob)["Body"].read()

    s3.put_object(Bucket=bucket, Key=blob, Body=whole[: len(whole) // 2])
    namespace.patch("rlj", "endless", {"spec": {"suspend": False}})

    told = eventually(
        "an event says so",
        lambda: [event for event in namespace.list("events") if event["reason"] == "CheckpointPassedOver"],
    )
    assert newest.rpartition("/")[2].removesuffix(".json") in told[0]["message"]
    job = eventually("it trains past it", lambda: training(namespace, "endless", manifest["steps"]))
    assert_steps_are_the_accepted_fragments(job)


def test_a_wiped_and_a_forged_status_come_right_again(namespace: Namespace, endless: Json) -> None:
    namespace.apply(endless)
    job = eventually("it trains", lambda: training(namespace, "endless"))

    for forged in (
        {"status": None},
        {"status": {"attempt": 7, "failuresCounted": 9, "startTime": "2001-01-01T00:00:00Z"}},
    ):
        namespace.patch("rlj", "endless", forged, subresource="status")

        right = eventually(
            "the status is what it was",
            lambda: (
                (j := training(namespace, "endless"))
                and j["status"].get("startTime") == job["status"]["startTime"]
                and j["status"].get("attempt") == job["status"]["attempt"]
                and j["status"].get("failuresCounted", 0) == 0
                and j
            ),
        )
        assert condition(right, "Progressing")["status"] == "True"
        assert_steps_are_the_accepted_fragments(right)


def test_a_trainer_that_fails_counts_and_the_next_attempt_goes_on(
    namespace: Namespace, endless: Json
) -> None:
    namespace.apply(endless)
    saved = eventually("a checkpoint is there", lambda: checkpointed(namespace, "endless"))
    pod = eventually("one trainer runs", lambda: one_pod(namespace, "trainer", "endless"))

    # From the node: inside its own container, nothing can kill process 1.
    subprocess.run(
        ["docker", "exec", pod["spec"]["nodeName"], "pkill", "-KILL", "-f", "bin/ratchet-trainer"], check=True
    )

    job = eventually(
        "a second attempt has counted further",
        lambda: (j := training(namespace, "endless", saved["steps"])) and j["status"]["attempt"] == 2 and j,
    )
    assert job["status"]["failuresCounted"] == 1
    assert_steps_are_the_accepted_fragments(job)


def test_a_quiet_minute_is_without_a_write(namespace: Namespace, endless: Json, s3: Any) -> None:
    """Whatever the API server made of what was written, such as 1k of 1000 requests a second."""
    eventually(
        "no earlier test's namespace is on its way out",
        lambda: all(n["status"]["phase"] == "Active" for n in namespace.list("namespaces")),
    )
    endless["spec"]["suspend"] = True
    namespace.apply(endless)
    eventually(
        "the job is suspended",
        lambda: condition(namespace.find("rlj", "endless"), "Suspended").get("status") == "True",
    )
    serve(Arena(namespace, s3))
    before = eventually("the operator has settled", _settled)

    # It looks every three seconds, so this is more than a minute, with a full resync inside.
    after = eventually(
        "25 more looks at the Lease",
        lambda: (now := writes_and_lease_reads())[1] >= before[1] + 25 and now,
    )

    assert after[0] == before[0]


def serve(arena: Arena) -> None:
    """A policy with all that can be asked for beside it, and nobody who asks it anything."""
    hook = {"WEBHOOK_URL": "http://nobody:8080/"}
    arena.namespace.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hook"}, "stringData": hook}
    )
    # So much of each that a server which does nothing needs no second one beside it.
    requests = {"cpu": "200m", "memory": "256Mi"}
    more = {
        "server": {"resources": {"requests": requests, "limits": {"memory": "384Mi"}}},
        "autoscaling": {"maxReplicas": 3, "cpuPercent": 100, "memoryPercent": 100, "requestsPerSecond": 1000},
        "scaleToZeroAfter": "1h",
        "webhook": {"secretRef": {"name": "hook"}},
    }
    first = deployment.source(arena.policy("good"))
    arena.namespace.apply(deployment.manifest(NAME, first, **more))
    arena.settled("good")
    assert '"1k"' in json.dumps(arena.namespace.list("hpa"))


def _settled() -> tuple[Json, float] | None:
    """The counts, once six looks at the Lease have gone by without a write: a status may be 16 s behind."""
    first = writes_and_lease_reads()
    later = eventually(
        "six looks at the Lease", lambda: (now := writes_and_lease_reads())[1] >= first[1] + 6 and now
    )
    return later if later[0] == first[0] else None


def test_wrong_s3_credentials_are_named(namespace: Namespace, endless: Json) -> None:
    namespace.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "wrong"},
            "stringData": {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "wrong-and-secret"},
        }
    )
    endless["spec"]["checkpoint"]["s3"]["secretRef"]["name"] = "wrong"
    endless["spec"]["failurePolicy"] = {"backoffLimit": 0}

    namespace.apply(endless)

    failed = eventually("the job fails", said(namespace, "Failed", "bucket ratchet", "secretRef"))
    assert "wrong-and-secret" not in str(namespace.find("rlj", "endless"))
    assert failed["status"] == "True"


def test_a_missing_bucket_is_named(namespace: Namespace, endless: Json) -> None:
    endless["spec"]["checkpoint"]["s3"]["bucket"] = "no-such-bucket"
    endless["spec"]["failurePolicy"] = {"backoffLimit": 0}

    namespace.apply(endless)

    eventually("the job fails", said(namespace, "Failed", "no-such-bucket", "Create the bucket"))


def test_an_image_that_cannot_be_pulled_is_named_while_the_job_waits(
    namespace: Namespace, endless: Json
) -> None:
    endless["spec"]["trainer"] = {"image": "localhost:1/no/such-image:1"}

    namespace.apply(endless)

    waiting = eventually(
        "the condition names it", said(namespace, "Progressing", "localhost:1/no/such-image:1")
    )
    assert waiting["status"] == "False"


def test_nan_in_the_loss_fails_the_job_at_once_says_what_to_lower_and_keeps_what_was_good(
    namespace: Namespace, endless: Json, s3: Any
) -> None:
    """The first updates are wild and finite; each that is judged the best so far is stored."""
    wild = {"learningRate": 1.0, "maxGradNorm": 1e30, "epochs": 2, "minibatchSize": 512}
    endless["spec"]["algorithm"]["ppo"] |= wild | {"valueCoefficient": 10, "entropyCoefficient": 1.0}
    endless["spec"]["evaluation"] = {"everySteps": 1, "episodes": 10}

    namespace.apply(endless)

    failed = eventually("the job fails", said(namespace, "Failed", "NaN", "lower algorithm.ppo.learningRate"))
    assert failed["reason"] == "Diverged"
    kept = namespace.find("rlj", "endless")["status"]["checkpoints"]["best"]
    bucket, _, key = kept["uri"].removeprefix("s3://").partition("/")
    text = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    assert kept["digest"] == f"sha256:{hashlib.sha256(text).hexdigest()}"
    assert isfinite(kept["meanReturn"])
    prefix = key.rpartition("/manifests/")[0]
    for blob in json.loads(text)["blobs"].values():
        content = s3.get_object(Bucket=bucket, Key=f"{prefix}/blobs/sha256/{blob['sha256']}")["Body"].read()
        assert hashlib.sha256(content).hexdigest() == blob["sha256"]
