"""The operator's series of its objects: from statuses alone, for as long as the object is there."""

import asyncio
from typing import Any

import aiohttp
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from ratchet_operator.cache import Cache
from ratchet_operator.kinds import POLICY_DEPLOYMENT, TRAINING_JOB
from ratchet_operator.metrics import REGISTRY
from ratchet_operator.series import FAMILIES, ObjectSeries
from ratchet_operator.web import Web
from redisserver import free_port

Json = dict[str, Any]
DIGESTS = {"stable": f"sha256:{'a' * 64}", "canary": f"sha256:{'b' * 64}"}


def rollout(name: str = "cartpole", version: int = 1, **status: Any) -> Json:
    return {
        "apiVersion": POLICY_DEPLOYMENT.api_version,
        "kind": POLICY_DEPLOYMENT.kind,
        "metadata": {
            "namespace": "team",
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": str(version),
        },
        "spec": {
            "source": {"type": "TrainingJob", "trainingJob": {"jobRef": {"name": "job"}}},
            "strategy": {"progressDeadline": "5m"},
        },
        "status": status,
    }


def arm(name: str, weight: int) -> Json:
    return {"digest": DIGESTS[name], "revision": f"rev-{name}", "weight": weight, "replicas": 3, "ready": 2}


def record(guard: str, verdict: str, **figures: Any) -> Json:
    return {"guard": guard, "verdict": verdict, "time": "2026-01-01T00:00:30Z", **figures}


def condition(kind: str, reason: str) -> Json:
    return {"type": kind, "status": "True", "reason": reason, "lastTransitionTime": "2026-01-01T00:00:00Z"}


TRYING = rollout(
    stable=arm("stable", 75),
    canary=arm("canary", 25),
    trial={"phase": "Stage", "stage": 1, "since": "2026-01-01T00:00:00Z"},
    decisions=[
        record("errorRate", "NotEnoughEvidence", odds=3.5, needed=140.0, canarySamples=40, stableSamples=160),
        record("nan", "Pass"),
    ],
    history=[
        {"digest": DIGESTS["canary"], "outcome": "Failed", "time": "2025-12-31T00:00:00Z"},
        {"digest": DIGESTS["canary"], "outcome": "Failed", "time": "2026-01-01T00:00:00Z"},
    ],
    quarantined=[{"digest": DIGESTS["canary"]}],
    conditions=[condition("Progressing", "Watching")],
)
JOB = {
    "apiVersion": TRAINING_JOB.api_version,
    "kind": TRAINING_JOB.kind,
    "metadata": {"namespace": "team", "name": "job", "uid": "uid-job", "resourceVersion": "1"},
    "spec": {},
    "status": {
        "conditions": [condition("Progressing", "Training")],
        "startTime": "2026-01-01T00:00:00Z",
        "failuresCounted": 2,
        "progress": {"steps": 4096},
        "workers": {"wanted": 4, "ready": 3},
        "checkpoints": {
            "latest": {
                "name": "n", "uri": "s3://b/n", "digest": DIGESTS["stable"], "steps": 4000,
                "policyVersion": 3, "time": "2026-01-01T00:10:00Z",
            }
        },
    },
}  # fmt: skip


def cached(*objects: Json) -> Cache:
    cache = Cache((TRAINING_JOB, POLICY_DEPLOYMENT))
    for obj in objects:
        cache.stores[obj["kind"]].put(obj)
    return cache


def samples(cache: Cache) -> dict[tuple[str, ...], float]:
    """Values by metric and the labels' values but namespace and name."""
    registry = CollectorRegistry()
    registry.register(ObjectSeries(cache))
    found: dict[tuple[str, ...], float] = {}
    for family in registry.collect():
        for sample in family.samples:
            rest = tuple(value for key, value in sample.labels.items() if key not in ("namespace", "name"))
            found[sample.name, *rest] = sample.value
    return found


def test_a_rollouts_series_are_what_its_status_says():
    found = samples(cached(TRYING))

    assert found["ratchet_rollout_weight_ratio", "canary"] == 0.25
    assert found["ratchet_rollout_pods", "canary", "alive"] == 3
    assert found["ratchet_rollout_pods", "stable", "ready"] == 2
    assert found["ratchet_rollout_arm_info", "canary", "b" * 12, "rev-canary"] == 1
    assert found["ratchet_rollout_stage",] == 1
    assert found["ratchet_rollout_phase", "Stage"] == 1
    assert sum(value for key, value in found.items() if key[0] == "ratchet_rollout_phase") == 1
    assert found["ratchet_rollout_phase_start_timestamp_seconds",] == 1767225600
    assert found["ratchet_rollout_progress_deadline_seconds",] == 300
    assert found["ratchet_rollout_guard_verdict", "errorRate", "NotEnoughEvidence"] == 1
    assert found["ratchet_rollout_guard_odds", "errorRate"] == 3.5
    assert found["ratchet_rollout_guard_odds_needed", "errorRate"] == 140
    assert found["ratchet_rollout_guard_samples", "errorRate", "canary"] == 40
    assert found["ratchet_rollout_ended_timestamp_seconds", "Failed"] == 1767225600
    assert found["ratchet_rollout_quarantined",] == 1
    assert found["ratchet_rollout_condition", "Progressing", "True", "Watching"] == 1
    assert ("ratchet_rollout_guard_odds", "nan") not in found


def test_a_jobs_series_are_what_its_status_says():
    found = samples(cached(JOB))

    assert found["ratchet_job_condition", "Progressing", "True", "Training"] == 1
    assert found["ratchet_job_steps_total",] == 4096
    assert found["ratchet_job_failures_total",] == 2
    assert found["ratchet_job_workers", "ready"] == 3
    assert found["ratchet_job_start_timestamp_seconds",] == 1767225600
    assert found["ratchet_job_checkpoint_timestamp_seconds", "latest"] == 1767226200


def test_series_go_with_what_they_are_about():
    cache = cached(TRYING)
    cache[POLICY_DEPLOYMENT].put(rollout(version=2, stable=arm("stable", 100)))
    after = samples(cache)
    assert after["ratchet_rollout_phase", "None"] == 1
    assert not [key for key in after if "guard" in key[0] or "canary" in key]

    cache[POLICY_DEPLOYMENT].remove("uid-cartpole")
    assert samples(cache) == {}


def test_a_status_that_cannot_be_read_hides_no_other_object():
    broken = rollout("broken", stable="nonsense")
    assert samples(cached(broken, TRYING)) == samples(cached(TRYING))


def test_the_page_has_the_process_and_every_family_of_the_objects():
    async def scrape() -> str:
        objects = CollectorRegistry()
        objects.register(ObjectSeries(cached(TRYING, JOB)))
        port = free_port()
        web = Web(port, lambda: None, lambda: None, lambda: None, (REGISTRY, objects))
        async with (
            web,
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/metrics") as answer,
        ):
            return await answer.text()

    found = {family.name for family in text_string_to_metric_families(asyncio.run(scrape()))}
    assert {family.name.removesuffix("_total") for family in FAMILIES} <= found
    assert {"ratchet_leader", "ratchet_queue_depth"} <= found
