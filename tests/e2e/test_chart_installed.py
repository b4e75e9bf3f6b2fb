"""The installed chart: its own test passes, and the operator may do what it needs and nothing more."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
RELEASE, NAMESPACE = "ratchet", "ratchet-system"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:{RELEASE}"


@pytest.fixture(scope="module")
def authorization() -> Any:
    config.load_kube_config()
    return client.AuthorizationV1Api()


def may(authorization: Any, verb: str, group: str, resource: str, namespace: str = "default") -> bool:
    what, _, subresource = resource.partition("/")
    attributes = client.V1ResourceAttributes(
        verb=verb, group=group, resource=what, subresource=subresource or None, namespace=namespace
    )
    review = client.V1SubjectAccessReview(
        spec=client.V1SubjectAccessReviewSpec(user=ACCOUNT, resource_attributes=attributes)
    )
    return authorization.create_subject_access_review(review).status.allowed


def test_helm_test_passes() -> None:
    helm = subprocess.run(
        ["hack/cluster", "tool", "helm"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    done = subprocess.run(
        [
            helm.stdout.strip().splitlines()[-1],
            "test",
            RELEASE,
            "--namespace",
            NAMESPACE,
            "--timeout",
            "120s",
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Phase:          Succeeded" in done.stdout


@pytest.mark.parametrize(
    ("verb", "group", "resource"),
    [
        ("watch", "ratchet.dev", "rltrainingjobs"),
        ("patch", "ratchet.dev", "rltrainingjobs/status"),
        ("create", "apps", "deployments"),
        ("patch", "apps", "replicasets"),
        ("create", "", "secrets"),
        ("list", "", "pods"),
    ],
)
def test_the_operator_may_do_its_work(authorization: Any, verb: str, group: str, resource: str) -> None:
    assert may(authorization, verb, group, resource)


@pytest.mark.parametrize(
    ("verb", "group", "resource"),
    [
        ("list", "", "secrets"),
        ("watch", "", "secrets"),
        ("delete", "", "secrets"),
        ("create", "", "pods"),
        ("create", "", "pods/exec"),
        ("get", "", "pods/log"),
        ("update", "", "configmaps"),
        ("delete", "", "configmaps"),
        ("deletecollection", "apps", "deployments"),
        ("create", "networking.k8s.io", "networkpolicies"),
        ("create", "", "serviceaccounts/token"),
        ("impersonate", "", "users"),
        ("bind", "rbac.authorization.k8s.io", "clusterroles"),
        ("patch", "ratchet.dev", "rltrainingjobs"),
        ("create", "rbac.authorization.k8s.io", "rolebindings"),
        ("create", "apps", "daemonsets"),
        ("patch", "", "nodes"),
    ],
)
def test_the_operator_may_do_nothing_else(authorization: Any, verb: str, group: str, resource: str) -> None:
    assert not may(authorization, verb, group, resource)


def test_leases_are_the_operators_only_at_home(authorization: Any) -> None:
    assert may(authorization, "create", "coordination.k8s.io", "leases", NAMESPACE)
    assert not may(authorization, "create", "coordination.k8s.io", "leases", "default")
