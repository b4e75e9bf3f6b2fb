"""The trainer: one pod at most at any time, numbered by attempt."""

from typing import Literal

from ratchet_operator.build.config import CONFIG_KEY, KEPT_KEY
from ratchet_operator.build.context import JobContext
from ratchet_operator.build.pod import (
    TMP,
    USER,
    Mount,
    config_mount,
    container,
    environment,
    http_probe,
    pod_spec,
    resources,
    secret_mount,
    user_mount,
)
from ratchet_operator.build.redis import SECRET_UID_ANNOTATION
from ratchet_operator.kinds import ATTEMPT_LABEL, DEPLOYMENT, Json, digest
from ratchet_operator.ledger import Ledger

PORT = 8080
CONFIG_HASH = "ratchet.dev/config-hash"
CONFIG_DIR = "/etc/ratchet"
REDIS_DIR = "/var/run/ratchet/redis"
S3_DIR = "/var/run/ratchet/s3"
CONTAINER = "trainer"
ACTIVE_SINCE = "RATCHET_ACTIVE_SINCE"


def shared_mounts(context: JobContext, *more: str) -> list[Mount]:
    """What trainer and workers both need to read, and what else of the ConfigMap one of them does."""
    return [
        config_mount("config", CONFIG_DIR, context.config_name, CONFIG_KEY, *more),
        secret_mount("redis", REDIS_DIR, context.redis_secret_name, "REDIS_URL"),
        TMP,
    ]


def shared_environment() -> dict[str, str]:
    """Where trainer and workers find it."""
    return {
        "RATCHET_CONFIG": f"{CONFIG_DIR}/{CONFIG_KEY}",
        "RATCHET_REDIS_URL_FILE": f"{REDIS_DIR}/REDIS_URL",
    }


def trainer_deployment(
    context: JobContext, ledger: Ledger, device: Literal["CPU", "GPU"], secret_uid: str, replicas: int
) -> Json:
    """`<job>-trainer`. Its template changes, and so its pod, with the configuration, the attempt, the
    device, the Redis password, and suspensions.
    """
    trainer, s3 = context.spec.trainer, context.spec.checkpoint.s3
    mounts = shared_mounts(context, KEPT_KEY)
    values = {
        "RATCHET_ATTEMPT": str(ledger.attempt),
        ACTIVE_SINCE: ledger.active_since or "",
        "RATCHET_DEVICE": device,
        "RATCHET_KEPT": f"{CONFIG_DIR}/{KEPT_KEY}",
        **shared_environment(),
    }
    if s3.secret_ref is not None:
        mounts.append(secret_mount("s3", S3_DIR, s3.secret_ref.name))
        values["RATCHET_S3_CREDENTIALS_DIR"] = S3_DIR
    mounts += [user_mount(volume) for volume in trainer.volumes]
    gpus: Json = {}
    if device == "GPU" and trainer.gpu is not None:
        gpus = {trainer.gpu.resource_name: trainer.gpu.count}
    main = container(
        CONTAINER,
        trainer.image or context.installation.trainer_image,
        context.installation.image_pull_policy,
        mounts,
        env=environment(values),
        ports=[{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        readinessProbe=http_probe("/readyz", periodSeconds=2, timeoutSeconds=2),
        livenessProbe=http_probe(
            "/healthz", initialDelaySeconds=60, periodSeconds=20, timeoutSeconds=10, failureThreshold=6
        ),
        resources=resources(trainer.resources, "200m", "512Mi", gpus),
    )
    labels = context.labels(CONTAINER)
    obj = context.child(DEPLOYMENT, context.trainer_name, CONTAINER)
    obj["spec"] = {
        "replicas": replicas,
        "revisionHistoryLimit": 0,
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": context.selector(CONTAINER)},
        "template": {
            "metadata": {
                "labels": {**labels, ATTEMPT_LABEL: str(ledger.attempt)},
                "annotations": {
                    CONFIG_HASH: digest(context.config.to_wire()),
                    SECRET_UID_ANNOTATION: secret_uid,
                },
            },
            "spec": pod_spec(main, mounts, USER, trainer, terminationGracePeriodSeconds=30),
        },
    }
    return obj
