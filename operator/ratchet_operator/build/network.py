"""Default-deny NetworkPolicies: each component hears and says only what it needs."""

from ratchet_operator.build.context import JobContext
from ratchet_operator.build.redis import PORT as REDIS_PORT
from ratchet_operator.build.trainer import PORT as HTTP_PORT
from ratchet_operator.kinds import NETWORK_POLICY, Json, base_name

_DNS: Json = {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}


def network_policies(context: JobContext) -> list[Json]:
    """One per component. Trainers may leave on TCP, since S3 can be anywhere; so may the workers of an
    external Redis, for its port is in a Secret.
    """
    to_redis: Json = {
        "to": [{"podSelector": {"matchLabels": context.selector("redis")}}],
        "ports": [{"protocol": "TCP", "port": REDIS_PORT}],
    }
    anywhere: Json = {"ports": [{"protocol": "TCP", "port": 1, "endPort": 65535}]}
    policies = [
        _policy(context, "trainer", [{"ports": [{"protocol": "TCP", "port": HTTP_PORT}]}], [_DNS, anywhere]),
        _policy(context, "rollouts", [], [_DNS, to_redis if context.is_redis_managed else anywhere]),
    ]
    if context.is_redis_managed:
        clients = [
            {"podSelector": {"matchLabels": context.selector(component)}}
            for component in ("trainer", "rollouts")
        ]
        ingress: Json = {"from": clients, "ports": [{"protocol": "TCP", "port": REDIS_PORT}]}
        policies.append(_policy(context, "redis", [ingress], []))
    return policies


def _policy(context: JobContext, component: str, ingress: list[Json], egress: list[Json]) -> Json:
    obj = context.child(NETWORK_POLICY, f"{base_name(context.name)}-{component}", component)
    obj["spec"] = {
        "podSelector": {"matchLabels": context.selector(component)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": ingress,
        "egress": egress,
    }
    return obj
