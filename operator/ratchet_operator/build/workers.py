"""The workers of a pool: a ReplicaSet, named by the hash of its template.

Not a Job, which makes workers wait for one another: it holds back every new pod for ten seconds after one
was lost, doubled with each loss, evictions included (docs/decisions/0006-workers.md).
"""

from ratchet_operator.build.context import PoolContext, identity
from ratchet_operator.build.pod import USER, container, environment, pod_spec, resources, user_mount
from ratchet_operator.build.redis import SECRET_UID_ANNOTATION
from ratchet_operator.build.trainer import shared_environment, shared_mounts
from ratchet_operator.kinds import JOB_UID_LABEL, LONGEST_POOL, WORKER_SET, Json, base_name, digest

CONTAINER = "worker"
TEMPLATE_LABEL = "ratchet.dev/template"


def worker_template(context: PoolContext, secret_uid: str) -> Json:
    """The pod template; a ReplicaSet leaves the pods of an older one alone, so another is another set."""
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
        "spec": pod_spec(main, mounts, USER, spec, terminationGracePeriodSeconds=10),
    }


def worker_set(context: PoolContext, secret_uid: str, replicas: int) -> Json:
    """`<pool>-<hash>` with `replicas` workers."""
    template = worker_template(context, secret_uid)
    name = digest(template)
    template["metadata"]["labels"] = {**context.labels, TEMPLATE_LABEL: name}
    return {
        **identity(
            WORKER_SET,
            context.job.namespace,
            f"{base_name(context.name, LONGEST_POOL)}-{name}",
            context.labels,
            context.owner,
        ),
        "spec": {
            "replicas": replicas,
            "selector": {
                "matchLabels": {
                    **context.selector, JOB_UID_LABEL: context.job.uid, TEMPLATE_LABEL: name
                }
            },
            "template": template,
        },
    }  # fmt: skip
