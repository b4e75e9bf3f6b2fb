"""What the cluster tests ask of a training job."""

import json

from cluster import Json, Namespace, progress


def training(namespace: Namespace, name: str, beyond: int = 0) -> Json | None:
    """The job once it has counted more than `beyond` steps."""
    job = namespace.find("rlj", name)
    return job if progress(job).get("steps", 0) > beyond else None


def checkpointed(namespace: Namespace, name: str, beyond: int = 0) -> Json | None:
    """The newest checkpoint once it is past `beyond` steps."""
    job = namespace.find("rlj", name) or {}
    latest = job.get("status", {}).get("checkpoints", {}).get("latest", {})
    return latest if latest.get("steps", 0) > beyond else None


def one_pod(namespace: Namespace, component: str, job: str) -> Json | None:
    """The only pod of that component that is not on its way out."""
    pods = [
        pod
        for pod in namespace.list("pods", f"ratchet.dev/job={job},ratchet.dev/component={component}")
        if "deletionTimestamp" not in pod["metadata"]
    ]
    return pods[0] if len(pods) == 1 else None


def evict(namespace: Namespace, pod: Json) -> None:
    """As a drain does: by the eviction API."""
    name = pod["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    path = f"/api/v1/namespaces/{namespace.name}/pods/{name}/eviction"
    namespace.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))


def assert_the_return_goes_on(before: Json, after: Json, until: int) -> None:
    """The progress of a job as it was at `until` steps, and once it trains on from there."""
    kept = [point for point in after["curve"] if point["steps"] <= until]
    assert kept[0] == before["curve"][0]
    assert all(point in before["curve"] for point in kept), "thinned perhaps, not begun anew"
    # The newest hundred episodes, most of which are from before.
    assert abs(after["meanReturn"] - before["meanReturn"]) < abs(before["meanReturn"]) / 4


def assert_steps_are_the_accepted_fragments(job: Json) -> None:
    """Fragments have one size here, so the step count says how many were accepted."""
    environment, ppo = job["spec"]["environment"], job["spec"]["algorithm"]["ppo"]
    size = environment["vectorSize"] * ppo["rolloutSteps"]
    assert progress(job)["steps"] == progress(job)["fragmentsAccepted"] * size
