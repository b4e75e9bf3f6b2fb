"""A job that goes on training keeps the checkpoints that servers start from, and only those."""

import json
from itertools import count
from typing import Any

from cluster import Json, Namespace, condition, eventually
from jobs import checkpointed, one_pod
from rollouts import deployment


class Job:
    """The job `endless`, and what it has in its bucket."""

    def __init__(self, namespace: Namespace, s3: Any) -> None:
        self._namespace = namespace
        self._s3 = s3
        self._looks = count()

    def manifests(self) -> set[str]:
        """Names of the checkpoints that can be read."""
        latest = checkpointed(self._namespace, "endless")
        assert latest is not None
        bucket, _, key = latest["uri"].removeprefix("s3://").partition("/")
        found = self._s3.list_objects_v2(Bucket=bucket, Prefix=key.rpartition("/")[0] + "/")
        return {entry["Key"].rpartition("/")[2].removesuffix(".json") for entry in found.get("Contents", [])}

    def kept(self) -> set[str]:
        """What its trainer is told to keep. A change of its pod has the kubelet do at once what it does
        within a minute or two: take a changed ConfigMap to where the pod reads it.
        """
        trainer = one_pod(self._namespace, "trainer", "endless")
        config_map = self._namespace.find("configmap", "endless-config")
        if trainer is None or config_map is None:
            return set()
        name = trainer["metadata"]["name"]
        self._namespace.kubectl("annotate", "pod", name, "--overwrite", f"tests/look={next(self._looks)}")
        return set(json.loads(config_map["data"]["kept.json"]))

    def has_left(self, seen: set[str], spared: set[str]) -> bool:
        """Whether all that was there once, but what is spared, was removed since."""
        return seen & self.manifests() <= spared


def test_what_serves_outlives_keep_last_and_keep_best(namespace: Namespace, endless: Json, s3: Any) -> None:
    endless["spec"]["checkpoint"] |= {"keepLast": 1, "keepBest": 1, "keepFor": "20s"}
    endless["spec"]["evaluation"]["everySteps"] = 1_000_000_000
    namespace.apply(endless)
    eventually("a checkpoint is there", lambda: checkpointed(namespace, "endless"))
    job = Job(namespace, s3)

    of_job = {"jobRef": {"name": "endless"}, "checkpoint": "Latest", "follow": "Never"}
    source = {"type": "TrainingJob", "trainingJob": of_job}
    namespace.apply(deployment.manifest("served", source, replicas=1))
    served = eventually("the trainer is told what serves", job.kept)
    before = eventually("it serves", lambda: ready(namespace))

    others = job.manifests()
    eventually("its contemporaries are gone", lambda: job.kept() == served and job.has_left(others, served))
    assert served <= job.manifests()
    namespace.kubectl("delete", "pods", "-l", "ratchet.dev/policy-deployment=served", "--now")
    eventually("a new server has started from it", lambda: ready(namespace) - before)

    namespace.kubectl("delete", "rlpd", "served", "--wait")
    eventually("it goes like any other", lambda: not job.kept() and job.has_left(served, set()))


def ready(namespace: Namespace) -> set[str]:
    """UIDs of the servers that answer."""
    pods = namespace.list("pods", "ratchet.dev/policy-deployment=served,ratchet.dev/component=server")
    return {pod["metadata"]["uid"] for pod in pods if condition(pod, "Ready").get("status") == "True"}
