"""The command's seam to Kubernetes, held to its promises by a real server."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from cluster import eventually
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from ratchet.api.v1alpha1.kinds import RL_TRAINING_JOB, ROLLOUT_POOL
from ratchet.cli.cluster import Cluster, Target, connect
from ratchet.cli.outcome import CommandError, Exit

pytestmark = pytest.mark.cluster

SPACE = "cli-contract"


def job(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "ratchet.dev/v1alpha1",
        "kind": "RLTrainingJob",
        "metadata": {"name": name},
        "spec": {
            "environment": {"id": "CartPole-v1"},
            "checkpoint": {"s3": {"bucket": "policies"}},
            "stop": {"maxSteps": 1000},
            "suspend": True,
            **spec,
        },
    }


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    config.load_kube_config()
    core = client.CoreV1Api()
    try:
        core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=SPACE)))
    except ApiException as error:
        if error.status != 409:
            raise
    yield connect(Target(namespace=SPACE))
    core.delete_namespace(SPACE)
    names = lambda: {space.metadata.name for space in core.list_namespace().items}  # noqa: E731
    eventually("the namespace is gone", lambda: SPACE not in names())


def delete(name: str) -> None:
    api = client.CustomObjectsApi()
    api.delete_namespaced_custom_object("ratchet.dev", "v1alpha1", SPACE, RL_TRAINING_JOB.plural, name)


def test_applying_gives_the_object_back_whether_it_is_new_or_not(cluster: Cluster) -> None:
    new = cluster.apply(job("applied"), RL_TRAINING_JOB)
    again = cluster.apply(job("applied", stop={"maxSteps": 5}), RL_TRAINING_JOB)

    assert new["metadata"]["uid"] == again["metadata"]["uid"]
    assert again["spec"]["stop"] == {"maxSteps": 5}
    found = cluster.get(RL_TRAINING_JOB, "applied")
    assert found is not None
    assert found["spec"] == again["spec"]


def test_the_file_wins_over_what_others_changed(cluster: Cluster) -> None:
    cluster.apply(job("contested"), RL_TRAINING_JOB)
    cluster.patch(RL_TRAINING_JOB, "contested", {"spec": {"stop": {"maxSteps": 7}}})

    assert cluster.apply(job("contested"), RL_TRAINING_JOB)["spec"]["stop"] == {"maxSteps": 1000}


def test_what_is_absent_is_none_and_an_empty_namespace_an_empty_list(cluster: Cluster) -> None:
    assert cluster.get(RL_TRAINING_JOB, "absent") is None
    assert connect(Target(namespace="kube-public")).objects(ROLLOUT_POOL) == []
    assert cluster.pods("ratchet.dev/job=absent") == []


def test_a_refusal_is_the_api_servers_sentence(cluster: Cluster) -> None:
    with pytest.raises(CommandError, match="training would never end") as refused:
        cluster.apply(job("endless", stop={}), RL_TRAINING_JOB)

    assert refused.value.code is Exit.NO


def test_a_watch_begins_with_what_is_and_ends_with_the_deletion(cluster: Cluster) -> None:
    cluster.apply(job("watched"), RL_TRAINING_JOB)
    seen = cluster.watch(RL_TRAINING_JOB, "watched")

    first = next(seen)
    assert first is not None
    assert first["metadata"]["name"] == "watched"

    cluster.patch(RL_TRAINING_JOB, "watched", {"spec": {"stop": {"maxSteps": 7}}})
    changed = next(one for one in seen if one is None or one["spec"]["stop"]["maxSteps"] == 7)
    assert changed is not None

    threading.Thread(target=delete, args=("watched",)).start()
    assert None in seen  # behind what the operator still has to say


def test_logs_of_several_pods_come_with_their_names() -> None:
    system = connect(Target(namespace="kube-system"))
    pods = system.pods("tier=control-plane")

    lines = list(system.logs(pods, follow=False, tail=1))

    assert {pod for pod, _ in lines} == set(pods)
    assert len(lines) == len(pods)


def test_following_yields_lines_before_the_pod_ends() -> None:
    system = connect(Target(namespace="kube-system"))
    pods = system.pods("tier=control-plane")[:2]

    lines = system.logs(pods, follow=True, tail=1)

    assert next(lines)[0] in pods


def test_a_cluster_without_ratchet_says_to_install_it(cluster: Cluster) -> None:
    other = replace(RL_TRAINING_JOB, plural="rlnothings")

    with pytest.raises(CommandError, match="install the chart first") as refused:
        cluster.get(other, "any")

    assert refused.value.code is Exit.UNAVAILABLE
