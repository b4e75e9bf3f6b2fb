"""The workers of a pool: an elastic Indexed Job, named by the hash of its template."""

from ratchet_operator.build.context import PoolContext
from ratchet_operator.build.pod import USER, container, environment, pod_spec, resources, user_mount
from ratchet_operator.build.redis import SECRET_UID_ANNOTATION
from ratchet_operator.build.trainer import shared_environment, shared_mounts
from ratchet_operator.kinds import LONGEST_POOL, WORKER_JOB, Json, base_name, digest, spec_of

CONTAINER = "worker"
NEVER_GIVE_UP = 2147483647


def worker_template(context: PoolContext, secret_uid: str) -> Json:
    """The pod template; a Job's template can't be changed, so another one is another Job."""
    spec, installation = context.spec, context.job.installation
    mounts = [*shared_mounts(context.job), *(user_mount(volume) for volume in spec.volumes)]
    main = container(
        CONTAINER,
        spec.image or context.job.spec.environment.image or installation.rollout_image,
        installation.image_pull_policy,
        mounts,
        env=environment({"RATCHET_POOL": context.name, **shared_environment()}),
        resources=resources(spec.resources, "150m", "256Mi"),
    )
    return {
        "metadata": {"labels": context.labels, "annotations": {SECRET_UID_ANNOTATION: secret_uid}},
        "spec": pod_spec(
            main, mounts, USER, spec, restartPolicy="OnFailure", terminationGracePeriodSeconds=10
        ),
    }


def worker_job(context: PoolContext, secret_uid: str, replicas: int, live: Json | None) -> Json:
    """`<pool>-<hash>` with `replicas` indexes. Zero suspend it, for a Job of zero is complete."""
    template = worker_template(context, secret_uid)
    size = replicas
    if replicas == 0:
        size = spec_of(live).get("completions") or 1
    return {
        "apiVersion": WORKER_JOB.api_version,
        "kind": WORKER_JOB.kind,
        "metadata": {
            "name": f"{base_name(context.name, LONGEST_POOL)}-{digest(template)}",
            "namespace": context.job.namespace,
            "labels": context.labels,
            "ownerReferences": [context.owner],
        },
        "spec": {
            "completionMode": "Indexed",
            "completions": size,
            "parallelism": size,
            "suspend": replicas == 0,
            "backoffLimit": NEVER_GIVE_UP,
            "template": template,
        },
    }
