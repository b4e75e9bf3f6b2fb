"""What a cluster sees of Ratchet: restricted pods without tokens, secrets nowhere, strangers left alone."""

import base64
import json
import subprocess
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Json, KubectlError, Namespace, condition, eventually, progress
from disguises import disguises
from jobs import checkpointed, one_pod, training
from rollouts import deployment
from rollouts.cartpoles import Stored

ROOT = Path(__file__).parents[2]
RELEASE = "ratchet"
OPERATOR = Namespace("ratchet-system")
KINDS = "rlj,rlp,rlpd,pods,deployments,replicasets,services,configmaps,events,networkpolicies"
# Of all that may be wrong with a URL, this is what an error's own words repeat.
HOOK = "ftp://chat.example/hooks/what+only/the=chat&knows"
SERVED = ("served", "locked-out")
# What each component shows to whoever reaches its pod.
PAGES = {
    "trainer": ("status", "metrics", "healthz", "no-such-page"),
    "server": ("v1/stats", "v1/route", "metrics", "readyz", "no-such-page"),
}


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(
        ["hack/cluster", "tool", "helm"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return subprocess.run(
        [found.stdout.strip().splitlines()[-1], *arguments], capture_output=True, text=True, check=False
    )


def set_values(**values: str) -> None:
    """The installed release with other values; its operator is the new one when this returns."""
    settings = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    done = helm(
        "upgrade", RELEASE, str(ROOT / "charts" / "ratchet"), "--namespace", OPERATOR.name,
        "--reuse-values", "--wait", "--timeout", "3m", *settings,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture
def values() -> Iterator[Callable[..., None]]:
    """Sets values of the installed release for one test."""
    before: Json = json.loads(
        helm("get", "values", RELEASE, "-n", OPERATOR.name, "--all", "-o", "json").stdout
    )

    def kept(name: str) -> str:
        at: Any = before
        for part in name.split("."):
            at = at[part]
        return json.dumps(at).strip('"')

    changed: set[str] = set()

    def change(**new: str) -> None:
        named = {name.replace("_", "."): value for name, value in new.items()}
        changed.update(named)
        set_values(**named)

    yield change
    set_values(**{name: kept(name) for name in changed})


def is_failed(namespace: Namespace, name: str) -> Callable[[], Json | None]:
    def found() -> Json | None:
        it = condition(namespace.find("rlj", name), "Failed")
        return it if it.get("status") == "True" else None

    return found


# --- pods


def assert_restricted(pod: Json, *, token: bool = False) -> None:
    """Holds for the pod as the API server keeps it, admission's own changes included."""
    name, spec = pod["metadata"]["name"], pod["spec"]
    sources = [
        source for volume in spec["volumes"] for source in volume.get("projected", {}).get("sources", ())
    ]
    assert any("serviceAccountToken" in source for source in sources) is token, name
    assert token or spec["automountServiceAccountToken"] is False, name
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
    assert not [volume for volume in spec["volumes"] if "hostPath" in volume], name
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True, name
    assert security["runAsUser"] > 0, name
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
    for container in [*spec["containers"], *spec.get("initContainers", ())]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["readOnlyRootFilesystem"] is True, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, name


def test_every_pod_of_a_job_is_restricted_and_holds_no_token(namespace: Namespace, endless: Json) -> None:
    namespace.apply(endless)
    eventually("it trains", lambda: training(namespace, "endless"))

    pods = namespace.list("pods")

    assert {pod["metadata"]["labels"]["ratchet.dev/component"] for pod in pods} == {
        "trainer", "redis", "rollouts",
    }  # fmt: skip
    for pod in pods:
        assert_restricted(pod)
        mounted = namespace.kubectl("exec", pod["metadata"]["name"], "--", "ls", "/var/run")
        assert "secrets" not in mounted.split()


def test_the_operators_own_pods_are_restricted(namespace: Namespace) -> None:
    pods = OPERATOR.list("pods", "app.kubernetes.io/component=operator")
    assert pods
    for pod in pods:
        assert_restricted(pod, token=True)
        assert all("memory" in container["resources"]["limits"] for container in pod["spec"]["containers"])
    # The API server's own word on them, and on the pod of `helm test`.
    said = subprocess.run(
        ["kubectl", "label", "namespace", OPERATOR.name, "--dry-run=server", "--overwrite",
         "pod-security.kubernetes.io/enforce=restricted"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "violat" not in said.stderr
    hooks = helm("get", "hooks", RELEASE, "--namespace", OPERATOR.name).stdout
    moved = hooks.replace(f"namespace: {OPERATOR.name}", f"namespace: {namespace.name}")
    assert "created (server dry run)" in namespace.kubectl(
        "create", "--dry-run=server", "-f", "-", stdin=moved
    )


def test_a_namespace_enforces_what_these_tests_rely_on(namespace: Namespace) -> None:
    loose = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "loose"},
        "spec": {"containers": [{"name": "main", "image": "none"}]},
    }
    with pytest.raises(KubectlError, match="violates PodSecurity"):
        namespace.apply(loose)


# --- secrets


def decoded(secret: Json) -> dict[str, str]:
    return {name: base64.b64decode(value).decode() for name, value in secret["data"].items()}


def everything_said(namespace: Namespace) -> Iterator[tuple[str, str]]:
    """Name and text of all that the namespace and the operator show to whoever may not read Secrets."""
    yield "objects", namespace.kubectl("get", KINDS, "-o", "yaml", "--show-managed-fields")
    yield "descriptions", namespace.kubectl("describe", KINDS)
    for pod in namespace.list("pods"):
        name = pod["metadata"]["name"]
        for options in ((), ("--previous",)):
            yield f"logs of {name}", namespace.logs(name, *options)
        if all(state["ready"] for state in pod["status"].get("containerStatuses", [{"ready": False}])):
            yield f"environment of {name}", namespace.kubectl("exec", name, "--", "cat", "/proc/1/environ")
            yield f"command of {name}", namespace.kubectl("exec", name, "--", "cat", "/proc/1/cmdline")
        for page in PAGES.get(pod["metadata"]["labels"]["ratchet.dev/component"], ()):
            at = f"/api/v1/namespaces/{namespace.name}/pods/{name}:8080/proxy/{page}"
            done = subprocess.run(["kubectl", "get", "--raw", at], capture_output=True, text=True)
            yield f"{page} of {name}", done.stdout + done.stderr
    yield "the operator's logs", said_by_the_operator()


def said_by_the_operator() -> str:
    return OPERATOR.kubectl("logs", "-l", "app.kubernetes.io/name=ratchet", "--tail=-1")


def serve(namespace: Namespace) -> None:
    """What `endless` has learned, once well and once with keys that S3 refuses."""
    latest = eventually("a checkpoint is there", lambda: checkpointed(namespace, "endless"))
    good = deployment.source(Stored(latest["uri"], latest["digest"], ""))
    bad = json.loads(json.dumps(good))
    bad["checkpoint"]["s3"]["secretRef"]["name"] = "wrong"
    # Little, for three jobs ask for their share too.
    little = {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "384Mi"}}
    more = {"server": {"resources": little}, "webhook": {"secretRef": {"name": "hook"}}}
    for name, source in zip(SERVED, (good, bad), strict=True):
        namespace.apply(deployment.manifest(name, source, replicas=1, **more))


def is_locked_out(namespace: Namespace) -> bool:
    """Whether the one whose keys are refused says so, and what to do."""
    status = deployment.status(namespace.find("rlpd", SERVED[1]))
    return "Correct the keys in the Secret of s3.secretRef" in json.dumps(status)


def test_no_secret_is_said_anywhere(
    namespace: Namespace, endless: Json, s3_secret: Json, values: Callable[..., None]
) -> None:
    """Neither while all is well nor by refused credentials, and not by an operator that says all it can."""
    values(logLevel="DEBUG")
    namespace.apply(endless)
    eventually("it trains", lambda: training(namespace, "endless"))
    made = namespace.find("secret", "endless-redis")
    assert made is not None
    redis_url = decoded(made)["REDIS_URL"]
    for name, content in (
        ("wrong", {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "wrong/and+secret=="}),
        ("borrowed", {"REDIS_URL": redis_url}),
        ("hook", {"WEBHOOK_URL": HOOK}),
    ):
        namespace.apply(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": content}
        )
    refused, prying = json.loads(json.dumps(endless)), json.loads(json.dumps(endless))
    for job, name in ((refused, "refused"), (prying, "prying")):
        job["metadata"]["name"] = name
        job["spec"]["failurePolicy"] = {"backoffLimit": 0}
    refused["spec"]["checkpoint"]["s3"]["secretRef"]["name"] = "wrong"
    # The user of one job is refused at another job's keys.
    prying["spec"]["experience"] = {"type": "External", "external": {"secretRef": {"name": "borrowed"}}}

    namespace.apply(refused)
    namespace.apply(prying)
    serve(namespace)

    eventually("the refused one fails", is_failed(namespace, "refused"))
    eventually("the prying one fails", is_failed(namespace, "prying"))
    assert "NoPermission" in json.dumps(namespace.find("rlj", "prying"))
    assert progress(namespace.find("rlj", "endless"))["steps"] > 0
    eventually(
        "one is served",
        lambda: deployment.status(namespace.find("rlpd", SERVED[0])).get("stable", {}).get("ready"),
    )
    eventually("the other one's keys are refused", lambda: is_locked_out(namespace))
    eventually(
        "a chat was told in vain", lambda: "a webhook did not take a message" in said_by_the_operator()
    )
    password = urllib.parse.urlsplit(redis_url).password
    keys = decoded(s3_secret)
    secrets = [redis_url, password or "", "wrong/and+secret==", keys["AWS_SECRET_ACCESS_KEY"], HOOK]
    secrets += [decoded(namespace.find("secret", f"{name}-admin") or {})["token"] for name in SERVED]
    assert all(secrets)
    heard = list(everything_said(namespace))
    for where, text in heard:
        for secret in secrets:
            for form in disguises(secret):
                assert form not in text, f"{where} holds a secret"
    token = OPERATOR.kubectl(
        "exec", f"deploy/{RELEASE}", "--", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token"
    )
    assert token.rpartition(".")[2] not in dict(heard)["the operator's logs"], "a token is in the log"


# --- strangers


@pytest.mark.parametrize("labelled", [False, True], ids=["unlabelled", "labelled"])
def test_what_someone_else_made_under_a_childs_name_is_left_alone_and_named(
    namespace: Namespace, endless: Json, labelled: bool
) -> None:
    # All that we watch by.
    labels = {"ratchet.dev/job": "endless", "ratchet.dev/component": "redis"} if labelled else {}
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "endless-redis", "labels": labels},
        "spec": {"ports": [{"port": 80}], "selector": {"app": "theirs"}},
    }
    namespace.apply(theirs)
    before = namespace.find("service", "endless-redis")
    namespace.apply(endless)

    def said() -> tuple[str, str] | None:
        it = condition(namespace.find("rlj", "endless"), "Progressing")
        return (it["status"], it["reason"]) if "Service endless-redis" in it.get("message", "") else None

    # Where the watch has not told of it yet, it is the API server that refuses, labelled or not.
    expected = ("False", "NameTaken" if labelled else "Refused")
    eventually("a condition names it, and why", lambda: said() == expected)
    assert namespace.find("service", "endless-redis") == before

    namespace.kubectl("delete", "service", "endless-redis")
    eventually("the job goes on by itself", lambda: training(namespace, "endless"))


def test_a_child_that_lost_its_label_gets_it_back(namespace: Namespace, endless: Json) -> None:
    endless["spec"]["suspend"] = True
    namespace.apply(endless)
    service = eventually("there is a Service", lambda: namespace.find("service", "endless-redis"))

    namespace.kubectl("label", "service", "endless-redis", "ratchet.dev/job-", "ratchet.dev/component-")

    def labelled() -> Json | None:
        live = namespace.find("service", "endless-redis")
        return live if live and "ratchet.dev/job" in live["metadata"].get("labels", {}) else None

    again = eventually("it is labelled again", labelled)
    assert again["metadata"]["uid"] == service["metadata"]["uid"]


# --- network policies


def test_policies_come_and_go_with_the_charts_value_while_training_goes_on(
    namespace: Namespace, endless: Json, values: Callable[..., None]
) -> None:
    # What lives there still would get policies too, which a dying namespace refuses for ever.
    eventually(
        "no earlier test's namespace is on its way out",
        lambda: all(n["status"]["phase"] == "Active" for n in namespace.list("namespaces")),
    )
    values(networkPolicies_enabled="true")
    namespace.apply(endless)
    steps = progress(eventually("it trains", lambda: training(namespace, "endless")))["steps"]
    made = namespace.list("networkpolicies", "ratchet.dev/job=endless")
    assert {policy["metadata"]["name"] for policy in made} == {
        "endless-trainer", "endless-rollouts", "endless-redis",
    }  # fmt: skip
    before = one_pod(namespace, "trainer", "endless")
    assert {policy["metadata"]["generation"] for policy in made} == {1}, "none was changed again"

    values(networkPolicies_enabled="false")

    eventually("they are taken away", lambda: not namespace.list("networkpolicies"))
    eventually("training goes on", lambda: training(namespace, "endless", steps))
    after = one_pod(namespace, "trainer", "endless")
    assert before is not None
    assert after is not None
    assert before["metadata"]["uid"] == after["metadata"]["uid"]


# --- two releases


def second_release(namespace: Namespace, *settings: str) -> subprocess.CompletedProcess[str]:
    flags = [word for setting in ("crds.install=false", *settings) for word in ("--set", setting)]
    return helm(
        "install", "second", str(ROOT / "charts" / "ratchet"), "--namespace", namespace.name,
        "--dry-run=server", *flags,
    )  # fmt: skip


def test_a_second_release_for_the_whole_cluster_is_refused(namespace: Namespace) -> None:
    done = second_release(namespace)
    assert done.returncode != 0
    assert 'ClusterRole "ratchet-operator"' in done.stderr


def test_a_second_release_for_a_part_of_the_cluster_is_refused(namespace: Namespace) -> None:
    done = second_release(namespace, f"watchNamespaces={{{namespace.name}}}")
    assert done.returncode != 0
    assert "serves the whole cluster already" in done.stderr


def test_a_release_for_the_whole_cluster_is_refused_beside_one_for_a_part(namespace: Namespace) -> None:
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {
            "name": "ratchet-operator",
            "annotations": {
                "meta.helm.sh/release-name": "part",
                "meta.helm.sh/release-namespace": namespace.name,
            },
        },
        "rules": [],
    }
    namespace.apply(role)
    done = second_release(namespace)
    assert done.returncode != 0
    assert f"serves the namespace {namespace.name} already" in done.stderr


# --- the Lease


def test_a_deleted_lease_is_made_again(namespace: Namespace) -> None:
    before = OPERATOR.find("lease", "ratchet-operator")
    assert before is not None

    OPERATOR.kubectl("delete", "lease", "ratchet-operator")

    def held() -> Json | None:
        lease = OPERATOR.find("lease", "ratchet-operator")
        return lease if lease and lease["metadata"]["uid"] != before["metadata"]["uid"] else None

    lease = eventually("there is another", held, deadline=60)
    assert lease["spec"]["holderIdentity"]
