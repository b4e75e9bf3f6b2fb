"""Builders: what each child says, and that every pod passes the restricted profile without a token."""

import json

import pytest
from ratchet_operator.build.config import config_map
from ratchet_operator.build.context import JobContext, PoolContext
from ratchet_operator.build.network import network_policies
from ratchet_operator.build.pool import REPLICAS_FROM, rollout_pool
from ratchet_operator.build.redis import redis_deployment, redis_service
from ratchet_operator.build.server import server_deployment
from ratchet_operator.build.serving import ServingContext
from ratchet_operator.build.trainer import CONFIG_HASH, trainer_deployment
from ratchet_operator.build.workers import worker_set
from ratchet_operator.kinds import base_name, label_value
from ratchet_operator.ledger import LEDGER_ANNOTATION, Ledger
from ratchet_operator.rollout.revision import Checkpoint
from ratchet_operator.settings import Installation

from ratchet.api.v1alpha1 import PolicyDeploymentSpec, RLTrainingJobSpec, RolloutPoolSpec, TrainingConfig

SPEC = {
    "environment": {"id": "CartPole-v1"},
    "checkpoint": {"s3": {"bucket": "bucket", "secretRef": {"name": "s3"}}},
    "stop": {"maxSteps": 1000},
}


def context(name: str = "job", **spec: object) -> JobContext:
    parsed = RLTrainingJobSpec.model_validate({**SPEC, **spec})
    return JobContext("team", name, "uid-1", parsed, Installation())


def pool_context(job: JobContext | None = None, **spec: object) -> PoolContext:
    parsed = RolloutPoolSpec.model_validate({"trainingJobRef": {"name": "job"}, **spec})
    return PoolContext("job-rollouts", "uid-2", parsed, job or context())


def server(**fields: object) -> dict:
    spec = {
        "source": {"type": "TrainingJob", "trainingJob": {"jobRef": {"name": "job"}}},
        "server": fields,
    }
    parsed = PolicyDeploymentSpec.model_validate(spec)
    serving = ServingContext("team", "served", "uid-3", parsed, Installation())
    where = Checkpoint(origin="job", digest="sha256:1", uri="s3://bucket/1.json", secret="s3")
    return server_deployment(serving, serving.revision_of(where), 2)


def container(obj: dict) -> dict:
    (only,) = obj["spec"]["template"]["spec"]["containers"]
    return only


def environment(obj: dict) -> dict[str, str]:
    return {item["name"]: item["value"] for item in container(obj)["env"]}


PODS_OF_A_JOB = {
    "trainer": trainer_deployment(context(), Ledger(), "CPU", "s", 1),
    "redis": redis_deployment(context(), "s", 1),
    "worker": worker_set(pool_context(), "s", 2),
}
ALL_PODS = {**PODS_OF_A_JOB, "server": server()}


@pytest.mark.parametrize("component", ALL_PODS)
def test_every_pod_is_restricted_and_holds_no_token(component):
    pod = ALL_PODS[component]["spec"]["template"]["spec"]
    main = container(ALL_PODS[component])

    assert pod["automountServiceAccountToken"] is False
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC", "initContainers", "serviceAccountName"}
    kinds = {kind for volume in pod["volumes"] for kind in volume.keys() - {"name"}}
    assert kinds <= {"emptyDir", "configMap", "secret"}, "a projected one could hold a token"
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] >= 999
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert main["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert main["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert {"name": "tmp", "emptyDir": {}} in pod["volumes"]
    assert {mount["name"] for mount in main["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_all_three_fit_a_small_node():
    requests = [container(obj)["resources"]["requests"] for obj in PODS_OF_A_JOB.values()]

    assert [found["cpu"] for found in requests] == ["200m", "25m", "150m"]


def test_every_child_is_owned_labelled_and_named_after_the_job():
    job = context()
    children = [
        config_map(job, Ledger(), []), redis_deployment(job, "s", 1), redis_service(job),
        trainer_deployment(job, Ledger(), "CPU", "s", 1), rollout_pool(job, None),
        *network_policies(job),
    ]  # fmt: skip

    for child in children:
        metadata = child["metadata"]
        assert metadata["name"].startswith("job-")
        assert metadata["namespace"] == "team"
        assert metadata["labels"]["ratchet.dev/job"] == "job"
        assert metadata["labels"]["app.kubernetes.io/part-of"] == "ratchet"
        (owner,) = metadata["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == ("uid-1", True, True)


def test_the_configuration_is_what_the_trainer_parses_and_the_ledger_rides_along():
    obj = config_map(context(), Ledger(attempt=3), ["000000000100-1-100"])

    assert TrainingConfig.model_validate_json(obj["data"]["job.json"]).uid == "uid-1"
    assert obj["data"]["kept.json"] == '["000000000100-1-100"]'
    assert Ledger.model_validate_json(obj["metadata"]["annotations"][LEDGER_ANNOTATION]).attempt == 3


def test_the_trainer_is_told_what_it_needs():
    ledger = Ledger(attempt=4, active_since="2026-01-01T00:00:00Z")
    obj = trainer_deployment(context(), ledger, "CPU", "s", 1)

    assert environment(obj) == {
        "RATCHET_ATTEMPT": "4",
        "RATCHET_ACTIVE_SINCE": "2026-01-01T00:00:00Z",
        "RATCHET_DEVICE": "CPU",
        "RATCHET_KEPT": "/etc/ratchet/kept.json",
        "RATCHET_CONFIG": "/etc/ratchet/job.json",
        "RATCHET_REDIS_URL_FILE": "/var/run/ratchet/redis/REDIS_URL",
        "RATCHET_S3_CREDENTIALS_DIR": "/var/run/ratchet/s3",
    }
    assert obj["spec"]["strategy"] == {"type": "Recreate"}


def test_without_an_s3_secret_nothing_is_mounted_or_named():
    obj = trainer_deployment(context(checkpoint={"s3": {"bucket": "bucket"}}), Ledger(), "CPU", "s", 1)

    assert "RATCHET_S3_CREDENTIALS_DIR" not in environment(obj)
    assert "s3" not in {volume["name"] for volume in obj["spec"]["template"]["spec"]["volumes"]}


def test_a_gpu_is_asked_for_only_where_the_trainer_runs_on_one():
    job = context(trainer={"gpu": {"count": 2}, "resources": {"limits": {"memory": "4Gi"}}})

    on_gpu = container(trainer_deployment(job, Ledger(), "GPU", "s", 1))["resources"]["limits"]
    on_cpu = container(trainer_deployment(job, Ledger(), "CPU", "s", 1))["resources"]["limits"]

    assert on_gpu == {"memory": "4Gi", "nvidia.com/gpu": 2}
    assert on_cpu == {"memory": "4Gi"}


@pytest.mark.parametrize(
    ("changed", "rolls"),
    [
        ({"stop": {"maxSteps": 5}}, True),
        ({"evaluation": {"episodes": 5}}, True),
        ({"ttlSecondsAfterFinished": 5}, False),
        ({"failurePolicy": {"backoffLimit": 9}}, False),
    ],
)
def test_the_trainer_rolls_when_what_it_reads_changes(changed, rolls):
    def config_hash(job: JobContext) -> str:
        template = trainer_deployment(job, Ledger(), "CPU", "s", 1)["spec"]["template"]
        return template["metadata"]["annotations"][CONFIG_HASH]

    assert (config_hash(context()) != config_hash(context(**changed))) is rolls


def test_redis_refuses_when_full_keeps_nothing_and_is_as_large_as_asked():
    obj = redis_deployment(context(experience={"managed": {"maxMemory": "2Gi"}}), "s", 1)
    args = container(obj)["args"]
    options = dict(zip(args[::2], args[1::2], strict=True))

    assert options["--maxmemory"] == "2gb"
    assert options["--maxmemory-policy"] == "noeviction"
    assert (options["--save"], options["--appendonly"]) == ("", "no")


def test_an_external_redis_is_read_from_the_users_secret():
    job = context(experience={"type": "External", "external": {"secretRef": {"name": "mine"}}})
    volumes = trainer_deployment(job, Ledger(), "CPU", "s", 1)["spec"]["template"]["spec"]["volumes"]

    assert next(volume for volume in volumes if volume["name"] == "redis")["secret"]["secretName"] == "mine"


def test_the_pool_follows_the_job_when_the_job_changes_and_the_scaler_otherwise():
    job = context(rollouts={"replicas": 2, "minReplicas": 1, "maxReplicas": 8})
    first = rollout_pool(job, None)
    scaled = {**first, "spec": {**first["spec"], "replicas": 7}}
    edited = context(rollouts={"replicas": 3, "minReplicas": 1, "maxReplicas": 8})

    assert first["spec"]["replicas"] == 2
    assert first["metadata"]["annotations"][REPLICAS_FROM] == "2"
    assert rollout_pool(job, scaled)["spec"]["replicas"] == 7
    assert rollout_pool(edited, scaled)["spec"]["replicas"] == 3


def test_a_pool_is_a_valid_pool():
    rollouts = {"resources": {"limits": {"cpu": "1"}}, "placement": {"nodeSelector": {"a": "b"}}}
    pool = rollout_pool(context(rollouts=rollouts, environment={"id": "X-v0", "image": "mine:1"}), None)

    spec = RolloutPoolSpec.model_validate(pool["spec"])

    assert spec.image == "mine:1"
    assert (spec.min_replicas, spec.max_replicas) == (1, 1)


def test_a_worker_set_is_elastic_named_by_its_template_and_takes_no_other_pods():
    two, nine = (worker_set(pool_context(), "s", size) for size in (2, 9))
    other = worker_set(pool_context(image="mine:1"), "s", 2)

    assert two["metadata"]["name"] == nine["metadata"]["name"] != other["metadata"]["name"]
    assert nine["spec"]["replicas"] == 9
    assert environment(two)["RATCHET_POOL"] == "job-rollouts"
    selector, labels = (
        two["spec"]["selector"]["matchLabels"], two["spec"]["template"]["metadata"]["labels"]
    )  # fmt: skip
    assert selector.items() <= labels.items()
    assert not selector.items() <= other["spec"]["template"]["metadata"]["labels"].items()


def test_user_volumes_can_not_collide_with_ours():
    volumes = [{"name": "tmp", "mountPath": "/data", "emptyDir": "1Gi"}]
    obj = trainer_deployment(context(trainer={"volumes": volumes}), Ledger(), "CPU", "s", 1)
    names = [volume["name"] for volume in obj["spec"]["template"]["spec"]["volumes"]]

    assert len(names) == len(set(names))
    assert "user-tmp" in names


@pytest.mark.parametrize("name", ["a" * 200, "with.dots", "1-begins-with-a-digit", "a" * 37 + "-" + "b" * 30])
def test_children_of_any_job_have_names_that_fit(name):
    job = context(name=name)
    pool = PoolContext(job.pool_name, "u", pool_context().spec, job)
    worker = worker_set(pool, "s", 10_000)["metadata"]["name"]

    for child in (job.redis_name, job.trainer_name, job.pool_name, f"{worker}-x7k2p"):
        assert len(child) <= 63
        assert child[0].isalpha()
        assert "." not in child
    assert len(label_value(name)) <= 63


def test_short_names_stay_and_long_ones_stay_apart():
    assert base_name("cartpole") == "cartpole"
    assert base_name("a" * 60 + "1") != base_name("a" * 60 + "2")


def test_network_policies_deny_by_default_and_name_no_secret():
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in network_policies(context())}

    assert set(policies) == {"job-trainer", "job-rollouts", "job-redis"}
    assert all(spec["policyTypes"] == ["Ingress", "Egress"] for spec in policies.values())
    assert policies["job-redis"]["egress"] == []
    assert policies["job-rollouts"]["ingress"] == []
    assert "REDIS_URL" not in json.dumps(policies)
