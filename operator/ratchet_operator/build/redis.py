"""The managed Redis: a Secret with one ACL user that reaches one job's keys, a Deployment, a Service.

Nothing is kept on disk: what Redis holds can be made again from the newest checkpoint.
"""

from hashlib import sha256

from ratchet.api.v1alpha1.training import key_prefix
from ratchet_operator.build.context import JobContext, identity
from ratchet_operator.build.pod import REDIS_USER, TMP, container, pod_spec, resources, secret_mount
from ratchet_operator.kinds import DEPLOYMENT, SECRET, SERVICE, Json

PORT = 6379
COMMANDS = (
    "+ping +evalsha +script|load +get +set +del +hset +hmget +lpush +rpush +llen +blpop "
    "+xadd +xgroup|create +xreadgroup +xack +xdel"
)
"""All that the data plane says to Redis (docs/data-plane.md), within its scripts too."""
SECRET_UID_ANNOTATION = "ratchet.dev/redis-secret-uid"  # noqa: S105


def redis_secret(
    namespace: str, name: str, labels: dict[str, str], owner: Json, uid: str, password: str
) -> Json:
    """Password and address. Only the executor calls this, with a password that it has just drawn.

    Redis itself gets no more than the password's hash.
    """
    hashed = sha256(password.encode()).hexdigest()
    keys = f"{key_prefix(namespace, uid)}*"
    acl = (
        "user default off resetpass resetkeys resetchannels -@all\n"
        f"user job on #{hashed} ~{keys} resetchannels -@all {COMMANDS}\n"
    )
    return {
        **identity(SECRET, namespace, name, labels, owner),
        "type": "Opaque",
        "stringData": {"users.acl": acl, "REDIS_URL": f"redis://job:{password}@{name}:{PORT}/0"},
    }


def redis_deployment(context: JobContext, secret_uid: str, replicas: int) -> Json:
    """One Redis without persistence that refuses writes when it is full."""
    managed = context.spec.experience.managed
    max_memory = managed.max_memory if managed is not None else "256Mi"
    acl = secret_mount("acl", "/etc/ratchet-redis", context.redis_name, "users.acl")
    arguments = {
        "--save": "",
        "--appendonly": "no",
        "--protected-mode": "no",
        "--maxmemory-policy": "noeviction",
        "--maxmemory": max_memory.replace("Mi", "mb").replace("Gi", "gb"),
        "--aclfile": "/etc/ratchet-redis/users.acl",
        "--dir": TMP.path,
    }
    main = container(
        "redis",
        context.installation.redis_image,
        context.installation.image_pull_policy,
        [acl, TMP],
        command=["redis-server"],
        args=[word for pair in arguments.items() for word in pair],
        ports=[{"name": "redis", "containerPort": PORT, "protocol": "TCP"}],
        readinessProbe={"tcpSocket": {"port": "redis"}, "periodSeconds": 2, "failureThreshold": 3},
        livenessProbe={"tcpSocket": {"port": "redis"}, "initialDelaySeconds": 30, "periodSeconds": 20},
        resources=resources(managed.resources if managed is not None else None, "25m", "64Mi"),
    )
    obj = context.child(DEPLOYMENT, context.redis_name, "redis")
    obj["spec"] = {
        "replicas": replicas,
        "revisionHistoryLimit": 0,
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": context.selector("redis")},
        "template": {
            "metadata": {
                "labels": context.labels("redis"),
                "annotations": {SECRET_UID_ANNOTATION: secret_uid},
            },
            "spec": pod_spec(main, [acl, TMP], REDIS_USER, terminationGracePeriodSeconds=5),
        },
    }
    return obj


def redis_service(context: JobContext) -> Json:
    """The address in REDIS_URL."""
    obj = context.child(SERVICE, context.redis_name, "redis")
    obj["spec"] = {
        "type": "ClusterIP",
        "selector": context.selector("redis"),
        "ports": [{"name": "redis", "port": PORT, "targetPort": "redis", "protocol": "TCP"}],
    }
    return obj
