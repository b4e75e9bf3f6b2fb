"""Default-deny NetworkPolicies: each component hears and says only what it needs.

Who wants a component to reach more adds a policy of their own: policies add up.
"""

from ratchet_operator.build.context import JobContext
from ratchet_operator.build.redis import PORT as REDIS_PORT
from ratchet_operator.build.trainer import PORT as HTTP_PORT
from ratchet_operator.kinds import NETWORK_POLICY, Json, base_name

# A cloud's metadata endpoints hand out the node's credentials; environments run code of their own.
_NOT_THE_NODE: list[Json] = [
    {"namespaceSelector": {}},
    {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}},
    {"ipBlock": {"cidr": "::/0", "except": ["fd00:ec2::/32", "fe80::/10"]}},
]
_ANY_TCP: list[Json] = [{"protocol": "TCP", "port": 1, "endPort": 65535}]
_DNS: Json = {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}


def network_policies(context: JobContext) -> list[Json]:
    """One per component. Anybody may read a trainer's status and metrics. Trainers may leave on TCP, since S3
    can be anywhere, the node's own identity included; the workers of an external Redis may too, but for the
    node's identity: where that Redis is, only a Secret says.
    """
    to_redis: Json = {
        "to": [{"podSelector": {"matchLabels": context.selector("redis")}}],
        "ports": [{"protocol": "TCP", "port": REDIS_PORT}],
    }
    to_external: Json = {"to": _NOT_THE_NODE, "ports": _ANY_TCP}
    policies = [
        _policy(
            context,
            "trainer",
            [{"ports": [{"protocol": "TCP", "port": HTTP_PORT}]}],
            [_DNS, {"ports": _ANY_TCP}],
        ),
        _policy(context, "rollouts", [], [_DNS, to_redis if context.is_redis_managed else to_external]),
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
