"""Decisions, one by one."""

from datetime import UTC, datetime, timedelta

import pytest
from ratchet_operator.ledger import Ledger, stamp
from ratchet_operator.policies.device import choose_device
from ratchet_operator.policies.failure import Termination, judge, terminations
from ratchet_operator.policies.finished import GRACE_SECONDS, seconds_to_deadline, seconds_to_live
from ratchet_operator.policies.progress import seconds_until_due
from ratchet_operator.policies.waiting import why_not_ready

from ratchet.api.v1alpha1.training import Stop
from ratchet.api.v1alpha1.trainingjob import FailurePolicy, FailureRule, Gpu, OnExitCodes

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RESOURCE = "nvidia.com/gpu"


@pytest.mark.parametrize(
    ("gpu", "nodes", "running", "device", "starts", "reason"),
    [
        (None, {}, None, "CPU", True, None),
        (Gpu(count=0), {}, None, "CPU", True, None),
        (Gpu(), {RESOURCE: 1}, None, "GPU", True, "Available"),
        (Gpu(), {}, None, "CPU", True, "FallbackCPU"),
        (Gpu(count=2), {RESOURCE: 1}, None, "CPU", True, "FallbackCPU"),
        (Gpu(fallback="None"), {}, None, "GPU", False, "WaitingForGPU"),
        (Gpu(fallback="None"), {"amd.com/gpu": 8}, None, "GPU", False, "WaitingForGPU"),
        (Gpu(fallback="None"), None, None, "GPU", True, "NodesNotVisible"),
        (Gpu(), {}, "GPU", "GPU", True, "Allocated"),  # a device plugin restarts
        (Gpu(), {RESOURCE: 1}, "CPU", "CPU", True, "FallbackCPU"),  # a GPU node came later
        (Gpu(fallback="None"), {RESOURCE: 1}, "CPU", "GPU", True, "Available"),
    ],
)
def test_device(gpu, nodes, running, device, starts, reason):
    choice = choose_device(gpu, nodes, running)

    assert (choice.device, choice.may_start) == (device, starts)
    assert (choice.verdict.reason if choice.verdict else None) == reason


def test_waiting_for_a_gpu_names_the_resource_and_what_there_is():
    verdict = choose_device(Gpu(count=4, fallback="None"), {RESOURCE: 1}, None).verdict

    assert verdict is not None
    assert "4 x nvidia.com/gpu; the largest has 1" in verdict.message


def ended(code: int | None = 1, reason: str = "Error") -> Termination:
    return Termination("id", "pod", 1, reason, code, "why")


@pytest.mark.parametrize(
    ("termination", "action"),
    [
        (ended(10), "FailJob"),
        (ended(11), "Count"),
        (ended(12), "FailJob"),
        (ended(13), "Count"),
        (ended(14), "Ignore"),
        (ended(15), "FailJob"),
        (ended(1), "Count"),
        (ended(137, "OOMKilled"), "Count"),
        (ended(137, "Evicted"), "Ignore"),
        (ended(None, "Preempted"), "Ignore"),
        (ended(None, "NodeLost"), "Ignore"),
    ],
)
def test_what_a_failure_means_by_default(termination, action):
    assert judge(FailurePolicy(), termination) == action


def test_the_first_rule_of_the_user_that_matches_goes_before_the_defaults():
    rules = [
        FailureRule(action="Ignore", on_exit_codes=OnExitCodes(values=[10, 42])),
        FailureRule(action="FailJob", on_exit_codes=OnExitCodes(operator="NotIn", values=[1])),
        FailureRule(action="FailJob", on_reasons=["OOMKilled"]),
    ]
    policy = FailurePolicy(rules_=rules)

    assert [judge(policy, ended(code)) for code in (10, 42, 7, 1)] == ["Ignore", "Ignore", "FailJob", "Count"]
    assert judge(policy, ended(None, "OOMKilled")) == "FailJob"


def pod(**status: object) -> dict:
    return {
        "metadata": {"name": "p", "uid": "u", "labels": {"ratchet.dev/attempt": "3"}},
        "spec": {"containers": [{"name": "trainer", "image": "registry/trainer:9"}]},
        "status": status,
    }


def container(restarts: int, **states: object) -> list[dict]:
    return [{"name": "trainer", "restartCount": restarts, **states}]


def test_one_end_has_one_id_while_it_happens_and_after_the_restart():
    terminated = {"terminated": {"exitCode": 1, "message": "log\nlast line\n"}}
    during = terminations((pod(containerStatuses=container(4, state=terminated)),), "trainer")
    after = terminations((pod(containerStatuses=container(5, lastState=terminated)),), "trainer")

    assert during == after
    assert (during[0].id, during[0].attempt, during[0].message) == ("u/4", 3, "last line")


def test_an_end_with_success_or_by_deletion_is_no_failure():
    done = pod(containerStatuses=container(0, state={"terminated": {"exitCode": 0}}))
    going = pod(containerStatuses=container(0, state={"terminated": {"exitCode": 137}}))
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"

    assert terminations((done, going), "trainer") == []


@pytest.mark.parametrize(
    ("by", "reason"),
    [
        ("PreemptionByScheduler", "Preempted"),
        ("EvictionByEvictionAPI", "Evicted"),
        ("DeletionByTaintManager", "NodeLost"),
        ("DeletionByPodGC", "NodeLost"),
        ("TerminationByKubelet", "Evicted"),
    ],
)
def test_a_deletion_by_disruption_is_one_end_from_first_to_last_sight(by, reason):
    condition = {"type": "DisruptionTarget", "status": "True", "reason": by}
    going = pod(phase="Running", conditions=[condition])
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    gone = pod(phase="Failed", conditions=[condition],
               containerStatuses=container(0, state={"terminated": {"exitCode": 143}}))  # fmt: skip
    gone["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"

    assert [(end.reason, end.attempt) for end in terminations((going,), "trainer")] == [(reason, 3)]
    assert terminations((gone,), "trainer") == []


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"phase": "Failed", "reason": "Evicted"}, "Evicted"),
        (
            {
                "phase": "Failed",
                "conditions": [
                    {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
                ],
            },
            "Preempted",
        ),
        (
            {
                "containerStatuses": container(
                    0, state={"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
                )
            },
            "OOMKilled",
        ),
    ],
)
def test_why_a_pod_ended(status, reason):
    assert [found.reason for found in terminations((pod(**status),), "trainer")] == [reason]


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        (
            {
                "containerStatuses": container(
                    0, state={"waiting": {"reason": "ErrImagePull", "message": "no such host"}}
                )
            },
            "ImagePullBackOff",
            "registry/trainer:9 can't be pulled: no such host",
        ),
        (
            {
                "containerStatuses": container(
                    0,
                    state={
                        "waiting": {
                            "reason": "ImagePullBackOff",
                            "message": 'Back-off pulling image "x": ErrImagePull: no such host',
                        }
                    },
                )
            },
            "ImagePullBackOff",
            "registry/trainer:9 can't be pulled: no such host",
        ),
        (
            {
                "containerStatuses": container(
                    0,
                    state={
                        "waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s" not found'}
                    },
                )
            },
            "CreateContainerConfigError",
            'secret "s" not found',
        ),
        (
            {
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "message": "0/1 nodes: 1 Insufficient nvidia.com/gpu.",
                    }
                ]
            },
            "InsufficientGPU",
            "Insufficient nvidia.com/gpu",
        ),
        (
            {
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "message": "0/1 nodes: 1 Insufficient cpu."}
                ]
            },
            "Unschedulable",
            "Insufficient cpu",
        ),
        (
            {
                "containerStatuses": container(
                    3,
                    state={"waiting": {"reason": "CrashLoopBackOff"}},
                    lastState={"terminated": {"exitCode": 1, "message": "boom"}},
                )
            },
            "CrashLoopBackOff",
            "boom",
        ),
        ({"phase": "Pending"}, "PodStarting", "is starting"),
    ],
)
def test_what_a_pod_waits_for(status, reason, words):
    verdict = why_not_ready("trainer", [pod(**status)], RESOURCE)

    assert verdict.reason == reason
    assert words in verdict.message


def test_no_pod_yet():
    assert why_not_ready("trainer", []).reason == "PodPending"


def test_time_to_live():
    ledger = Ledger(outcome="Succeeded", completion_time=stamp(NOW))

    assert seconds_to_live(ledger, None, NOW) is None
    assert seconds_to_live(Ledger(), 10, NOW) is None
    assert seconds_to_live(ledger, 10, NOW + timedelta(seconds=4)) == 6
    assert seconds_to_live(ledger, 10, NOW + timedelta(seconds=9.5)) == 0.5
    assert seconds_to_live(ledger, 10, NOW + timedelta(seconds=10)) == 0
    assert seconds_to_live(ledger, 10, NOW + timedelta(seconds=11)) == 0
    assert seconds_to_live(ledger, 0, NOW) == 0


def test_a_deadline_is_max_duration_and_a_grace_after_active_time_began():
    ledger, stop = Ledger(active_since=stamp(NOW)), Stop(max_duration="10m")
    due = timedelta(minutes=10, seconds=GRACE_SECONDS)

    assert seconds_to_deadline(ledger, Stop(max_steps=1), NOW + 2 * due) is None
    assert seconds_to_deadline(Ledger(), stop, NOW) is None
    assert seconds_to_deadline(ledger, stop, NOW) == due.total_seconds()
    assert seconds_to_deadline(ledger, stop, NOW + due - timedelta(seconds=0.5)) == 0.5
    assert seconds_to_deadline(ledger, stop, NOW + due) == 0
    assert seconds_to_deadline(ledger, stop, NOW + 2 * due) == 0
    assert seconds_to_deadline(ledger.model_copy(update={"suspended": True}), stop, NOW + 2 * due) is None


def test_a_clock_that_was_set_back_puts_progress_off_for_no_longer_than_ever():
    assert seconds_until_due(NOW + timedelta(hours=1), 1, NOW) == seconds_until_due(NOW, 1, NOW)


def test_progress_is_written_more_rarely_where_there_are_many_jobs():
    assert seconds_until_due(None, 1000, NOW) == 0
    assert seconds_until_due(NOW, 1, NOW + timedelta(seconds=0.5)) == 1.5
    assert seconds_until_due(NOW, 1000, NOW + timedelta(seconds=10)) == 40
