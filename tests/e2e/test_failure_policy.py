"""Each way for a trainer to end on a real kubelet and scheduler, and what the job's rules make of it.

What no kubelet can be made to do on demand is in tests/unit/test_operator_failures.py, by pod statuses.
"""

import json
import subprocess
from collections.abc import Callable, Iterator

import pytest
from cluster import Json, Namespace, condition, eventually
from jobs import assert_steps_are_the_accepted_fragments, checkpointed, evict, one_pod, training

SLOT = "test.ratchet.dev/slot"
URGENT = "ratchet-test-urgent"


def failures(namespace: Namespace) -> list[tuple[str, str]]:
    """Reason and action of each failure of the job, oldest first."""
    status = (namespace.find("rlj", "endless") or {}).get("status", {})
    return [(failure["reason"], failure["action"]) for failure in status.get("failures", [])]


def judged(namespace: Namespace, *wanted: tuple[str, str]) -> Callable[[], Json | None]:
    """The job, once its failures are the wanted ones and it has trained on."""
    before = (namespace.find("rlj", "endless") or {})["status"]["progress"]["steps"]
    return lambda: training(namespace, "endless", before) if failures(namespace) == list(wanted) else None


def test_the_first_rule_that_matches_judges_and_attempts_are_numbered(
    namespace: Namespace, endless: Json
) -> None:
    endless["spec"]["failurePolicy"] = {
        "rules": [
            {"action": "Ignore", "onExitCodes": {"values": [137]}},
            {"action": "Count", "onReasons": ["Evicted"]},
        ]
    }
    namespace.apply(endless)
    eventually("a checkpoint is there", lambda: checkpointed(namespace, "endless"))

    pod = eventually("one trainer runs", lambda: one_pod(namespace, "trainer", "endless"))
    # From the node: inside its own container, nothing can kill process 1.
    subprocess.run(
        ["docker", "exec", pod["spec"]["nodeName"], "pkill", "-KILL", "-f", "bin/ratchet-trainer"], check=True
    )
    ignored = eventually("the kill is ignored", judged(namespace, ("Error", "Ignore")))
    assert (ignored["status"]["attempt"], ignored["status"]["failuresCounted"]) == (1, 0)

    evict(namespace, eventually("it runs again", lambda: one_pod(namespace, "trainer", "endless")))

    counted = eventually("the eviction counts", judged(namespace, ("Error", "Ignore"), ("Evicted", "Count")))
    assert (counted["status"]["attempt"], counted["status"]["failuresCounted"]) == (2, 1)
    assert_steps_are_the_accepted_fragments(counted)


def test_a_trainer_without_enough_memory_fails_the_job_where_a_rule_says_so(
    namespace: Namespace, endless: Json
) -> None:
    endless["spec"]["trainer"] = {
        "resources": {"requests": {"cpu": "100m", "memory": "48Mi"}, "limits": {"memory": "48Mi"}}
    }
    endless["spec"]["failurePolicy"] = {"rules": [{"action": "FailJob", "onReasons": ["OOMKilled"]}]}

    namespace.apply(endless)

    failed = eventually(
        "the job fails",
        lambda: (c := condition(namespace.find("rlj", "endless"), "Failed")).get("status") == "True" and c,
    )
    assert failed["reason"] == "OOMKilled"
    assert failures(namespace) == [("OOMKilled", "FailJob")]


@pytest.fixture
def slot() -> Iterator[None]:
    """The node has room for one pod that asks for a slot, and some pods are more urgent than others."""
    cluster = Namespace("default")
    (node, *_) = [found["metadata"]["name"] for found in cluster.list("nodes")]
    pointer = f"/status/capacity/{SLOT.replace('/', '~1')}"

    def patch(operation: Json) -> None:
        change = json.dumps([{"path": pointer, **operation}])
        cluster.kubectl("patch", "node", node, "--subresource=status", "--type=json", "-p", change)

    cluster.apply(
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": URGENT},
            "value": 1000,
        }
    )
    patch({"op": "add", "value": "1"})
    yield
    patch({"op": "remove"})
    cluster.kubectl("delete", "priorityclass", URGENT)


@pytest.mark.usefixtures("slot")
def test_a_preempted_trainer_is_nobodys_failure_and_goes_on_once_there_is_room(
    namespace: Namespace, endless: Json
) -> None:
    asked = {"requests": {"cpu": "200m", SLOT: "1"}, "limits": {SLOT: "1"}}
    endless["spec"]["trainer"] = {"resources": asked}
    namespace.apply(endless)
    eventually("a checkpoint is there", lambda: checkpointed(namespace, "endless"))
    trainer = eventually("one trainer runs", lambda: one_pod(namespace, "trainer", "endless"))

    urgent = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "urgent"},
        "spec": {
            **{key: trainer["spec"][key] for key in ("securityContext", "terminationGracePeriodSeconds")},
            "priorityClassName": URGENT,
            "automountServiceAccountToken": False,
            "containers": [
                {
                    "name": "urgent",
                    "image": trainer["spec"]["containers"][0]["image"],
                    "command": ["sleep", "infinity"],
                    "securityContext": trainer["spec"]["containers"][0]["securityContext"],
                    "resources": {"limits": {SLOT: "1"}},
                }
            ],
        },
    }
    namespace.apply(urgent)
    eventually("the preemption is seen", lambda: failures(namespace) == [("Preempted", "Ignore")])
    eventually(
        "the job says what it waits for",
        lambda: SLOT in condition(namespace.find("rlj", "endless"), "Progressing")["message"],
    )

    seen = judged(namespace, ("Preempted", "Ignore"))
    namespace.kubectl("delete", "pod", "urgent", "--grace-period=0", "--force")

    job = eventually("it trains on", seen)
    assert (job["status"]["attempt"], job["status"].get("failuresCounted", 0)) == (1, 0)
    assert_steps_are_the_accepted_fragments(job)
