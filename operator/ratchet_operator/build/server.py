"""The servers of one arm: a Deployment that answers with one policy for as long as it lives."""

from ratchet_operator.build.admin import TOKEN_KEY
from ratchet_operator.build.pod import (
    TMP,
    USER,
    Mount,
    container,
    environment,
    http_probe,
    pod_spec,
    resources,
    secret_mount,
    user_mount,
)
from ratchet_operator.build.serving import CONTAINER, PORT, ServingContext, route_key
from ratchet_operator.build.trainer import S3_DIR
from ratchet_operator.kinds import DEPLOYMENT, REVISION_LABEL, Json
from ratchet_operator.ledger import REVISION_ANNOTATION
from ratchet_operator.rollout.revision import Revision

ADMIN_DIR = "/var/run/ratchet/admin"
ROUTE_DIR = "/etc/ratchet/route"
LEAVE_SECONDS = 5  # after SIGTERM: new requests are still answered until endpoints have forgotten the pod
DRAIN_SECONDS = 20  # after that, for what was asked
CANARY_MS = 250  # for the other arm to answer: what is merely slow is the latency guard's to judge
SLACK_SECONDS = 5  # for the process itself


def server_deployment(context: ServingContext, revision: Revision, replicas: int) -> Json:
    """`<name>-<revision>`. A rolling restart never takes away a pod before another one is ready."""
    fields, where, name = revision.server, revision.checkpoint, revision.name
    mounts = [
        secret_mount("admin", ADMIN_DIR, context.admin_name, TOKEN_KEY),
        # Not the whole map: what has another name belongs to the other arm.
        Mount(
            "route",
            ROUTE_DIR,
            {
                "configMap": {
                    "name": context.config_name,
                    "defaultMode": 0o444,
                    "items": [{"key": route_key(name), "path": "route.json"}],
                }
            },
        ),
        TMP,
    ]
    values = {"RATCHET_NAME": context.name}
    if where.secret is not None:
        mounts.append(secret_mount("s3", S3_DIR, where.secret))
        values["RATCHET_S3_CREDENTIALS_DIR"] = S3_DIR
    mounts += [user_mount(volume) for volume in fields.volumes]
    arguments = {
        "--policy": where.uri,
        "--digest": where.digest,
        "--route-file": f"{ROUTE_DIR}/route.json",
        "--admin-token-file": f"{ADMIN_DIR}/{TOKEN_KEY}",
        "--s3-endpoint": where.endpoint,
        "--s3-region": where.region,
        "--canary-ms": str(CANARY_MS),
        "--drain-delay-seconds": str(LEAVE_SECONDS),
        "--drain-seconds": str(DRAIN_SECONDS),
    }
    main = container(
        CONTAINER,
        revision.image,
        context.installation.image_pull_policy,
        mounts,
        args=[f"{flag}={value}" for flag, value in arguments.items() if value],
        env=environment(values),
        ports=[{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        readinessProbe=http_probe("/readyz", periodSeconds=1, timeoutSeconds=2),
        livenessProbe=http_probe(
            "/healthz", initialDelaySeconds=10, periodSeconds=10, timeoutSeconds=5, failureThreshold=3
        ),
        resources=resources(fields.resources, "100m", "128Mi"),
    )
    obj = context.child(DEPLOYMENT, context.arm_name(name), name)
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": context.selector(name)},
    }
    obj["metadata"]["annotations"] = {
        REVISION_ANNOTATION: revision.model_dump_json(
            by_alias=True, exclude_none=True, exclude={"policy", "spaces"}
        )
    }
    obj["spec"] = {
        "replicas": replicas,
        "revisionHistoryLimit": 0,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "25%"}},
        "selector": {"matchLabels": context.selector(name)},
        "template": {
            "metadata": {"labels": {**obj["metadata"]["labels"], REVISION_LABEL: name}},
            "spec": pod_spec(
                main,
                mounts,
                USER,
                fields,
                terminationGracePeriodSeconds=LEAVE_SECONDS + DRAIN_SECONDS + SLACK_SECONDS,
                topologySpreadConstraints=[spread],
            ),
        },
    }
    return obj
