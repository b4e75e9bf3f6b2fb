"""The job's own RolloutPool."""

from ratchet_operator.build.context import JobContext
from ratchet_operator.kinds import ROLLOUT_POOL, Json, annotations_of, spec_of

REPLICAS_FROM = "ratchet.dev/replicas-from"


def rollout_pool(context: JobContext, live: Json | None) -> Json:
    """`<job>-rollouts`. The job's replicas are pushed when the job's own value changed; otherwise
    the pool's value stands, so that `kubectl scale` and an autoscaler can move it.
    """
    rollouts = context.spec.rollouts
    replicas = rollouts.replicas
    if live is not None and annotations_of(live).get(REPLICAS_FROM) == str(rollouts.replicas):
        live_replicas = spec_of(live).get("replicas")
        if isinstance(live_replicas, int):
            replicas = live_replicas
    fields = rollouts.to_wire()
    spec: Json = {
        key: fields[key]
        for key in ("imagePullSecrets", "resources", "placement", "volumes")
        if fields.get(key)
    }
    image = context.spec.environment.image or rollouts.image
    if image is not None:
        spec["image"] = image
    spec |= {
        "trainingJobRef": {"name": context.name},
        "replicas": replicas,
        "minReplicas": rollouts.min_replicas or rollouts.replicas,
        "maxReplicas": rollouts.max_replicas or rollouts.replicas,
        "suspend": context.spec.suspend,
    }
    obj = context.child(ROLLOUT_POOL, context.pool_name, "rollouts")
    obj["metadata"]["annotations"] = {REPLICAS_FROM: str(rollouts.replicas)}
    obj["spec"] = spec
    return obj
