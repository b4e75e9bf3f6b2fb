"""Who may reach whom under the NetworkPolicies of a job, and of the servers of a policy, decided as
Kubernetes' API says a network must.

The local cluster's network does not enforce policies, so their meaning is held here: an evaluator of
networking.k8s.io/v1 over the built objects, and every pair of the parties around two jobs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from itertools import product
from typing import Any

import pytest
from ratchet_operator.build.context import JobContext, PoolContext
from ratchet_operator.build.network import network_policies
from ratchet_operator.build.redis import redis_deployment
from ratchet_operator.build.server import server_deployment
from ratchet_operator.build.serving import ServingContext, network_policy
from ratchet_operator.build.trainer import trainer_deployment
from ratchet_operator.build.workers import worker_template
from ratchet_operator.ledger import Ledger
from ratchet_operator.rollout.revision import Checkpoint
from ratchet_operator.settings import Installation

from ratchet.api.v1alpha1 import PolicyDeploymentSpec, RLTrainingJobSpec, RolloutPoolSpec

Json = dict[str, Any]
EXTERNAL = {"type": "External", "external": {"secretRef": {"name": "mine"}}}


@dataclass(frozen=True)
class Party:
    """A pod, or with an empty namespace an address outside of the cluster."""

    namespace: str
    labels: dict[str, str] = field(default_factory=dict, hash=False)
    address: str = "10.244.0.9"


def selects(selector: Json, labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}, "the evaluator knows no other selector"
    return selector.get("matchLabels", {}).items() <= labels.items()


def is_peer(peer: Json, policy_namespace: str, party: Party) -> bool:
    if "ipBlock" in peer:
        block, address = peer["ipBlock"], ip_address(party.address)
        inside = address in ip_network(block["cidr"])
        return inside and not any(address in ip_network(cut) for cut in block.get("except", ()))
    if not party.namespace:
        return False
    if "namespaceSelector" in peer:
        assert peer["namespaceSelector"] == {}, "the evaluator knows no labels of namespaces"
    elif party.namespace != policy_namespace:
        return False
    return selects(peer.get("podSelector", {}), party.labels)


def has_port(rule: Json, protocol: str, port: int) -> bool:
    ports = rule.get("ports")
    return not ports or any(
        one.get("protocol", "TCP") == protocol and one["port"] <= port <= one.get("endPort", one["port"])
        for one in ports
    )


def permits(policies: list[Json], way: str, here: Party, there: Party, protocol: str, port: int) -> bool:
    """Whether `here` may receive (way Ingress) from `there`, or send (Egress) to it."""
    mine = [
        policy
        for policy in policies
        if policy["metadata"]["namespace"] == here.namespace
        and selects(policy["spec"]["podSelector"], here.labels)
        and way in policy["spec"]["policyTypes"]
    ]
    peers = {"Ingress": "from", "Egress": "to"}[way]
    return not mine or any(
        has_port(rule, protocol, port)
        and (
            not rule.get(peers)
            or any(is_peer(peer, policy["metadata"]["namespace"], there) for peer in rule[peers])
        )
        for policy in mine
        for rule in policy["spec"][way.lower()]
    )


def reaches(policies: list[Json], source: Party, target: Party, protocol: str, port: int) -> bool:
    return permits(policies, "Egress", source, target, protocol, port) and permits(
        policies, "Ingress", target, source, protocol, port
    )


def job(namespace: str, name: str, uid: str, **spec: Any) -> JobContext:
    parsed = RLTrainingJobSpec.model_validate(
        {
            "environment": {"id": "CartPole-v1"},
            "checkpoint": {"s3": {"bucket": "bucket"}},
            "stop": {"maxSteps": 1000},
            **spec,
        }
    )
    return JobContext(namespace, name, uid, parsed, Installation())


def pods(prefix: str, context: JobContext) -> dict[str, Party]:
    """The job's pods with the labels that their builders give, and a worker of a pool that a user added."""

    def labels(obj: Json) -> dict[str, str]:
        return obj["spec"]["template"]["metadata"]["labels"]

    def worker(pool: str) -> dict[str, str]:
        spec = RolloutPoolSpec.model_validate({"trainingJobRef": {"name": context.name}})
        template = worker_template(PoolContext(pool, "uid-pool", spec, context), "s")
        return template["metadata"]["labels"]

    found = {
        "trainer": labels(trainer_deployment(context, Ledger(), "CPU", "s", 1)),
        "worker": worker(context.pool_name),
        "added": worker("more"),
    }
    if context.is_redis_managed:
        found["redis"] = labels(redis_deployment(context, "s", 1))
    return {f"{prefix}.{name}": Party(context.namespace, labels) for name, labels in found.items()}


def serving(namespace: str, name: str, uid: str) -> ServingContext:
    source = {"type": "TrainingJob", "trainingJob": {"jobRef": {"name": "a"}}}
    return ServingContext(
        namespace, name, uid, PolicyDeploymentSpec.model_validate({"source": source}), Installation()
    )


def servers(prefix: str, context: ServingContext) -> dict[str, Party]:
    """A server of each arm, with the labels that its builder gives."""

    def labels(digest: str) -> dict[str, str]:
        where = Checkpoint(origin="job", digest=digest, uri="s3://bucket/1.json")
        obj = server_deployment(context, context.revision_of(where), 1)
        return obj["spec"]["template"]["metadata"]["labels"]

    return {
        f"{prefix}.{arm}": Party(context.namespace, labels(f"sha256:{arm}")) for arm in ("stable", "canary")
    }


OUTSIDE = {
    "operator": Party("ratchet-system", {"app.kubernetes.io/name": "ratchet"}),
    "prometheus": Party("monitoring", {"app": "prometheus"}),
    "neighbour": Party("team", {"app": "web"}),
    "dns": Party("kube-system", {"k8s-app": "kube-dns"}),
    "s3": Party("", address="203.0.113.9"),
    "metadata": Party("", address="169.254.169.254"),
}
TALKS = {
    "http": ("TCP", 8080), "redis": ("TCP", 6379), "https": ("TCP", 443), "dns": ("UDP", 53),
    "ntp": ("UDP", 123),
}  # fmt: skip
Contexts = Mapping[str, JobContext | ServingContext]


def map_of(contexts: Contexts) -> tuple[list[Json], dict[str, Party]]:
    policies: list[Json] = []
    parties = dict(OUTSIDE)
    for prefix, context in contexts.items():
        if isinstance(context, ServingContext):
            policies.append(network_policy(context))
            parties |= servers(prefix, context)
        else:
            policies += network_policies(context)
            parties |= pods(prefix, context)
    return policies, parties


def reached(contexts: Contexts, *, by: str = "", to: str = "") -> set[tuple[str, str, str]]:
    """(from, to, what) of each talk that one of the parties named so can have with any other."""
    policies, parties = map_of(contexts)
    return {
        (source, target, talk)
        for (source, here), (target, there), (talk, (protocol, port)) in product(
            parties.items(), parties.items(), TALKS.items()
        )
        if source != target
        and source.startswith(by)
        and target.startswith(to)
        and reaches(policies, here, there, protocol, port)
    }


TWO = {"a": job("team", "a", "uid-a"), "b": job("team", "b", "uid-b")}
ELSEWHERE = {"a": job("team", "a", "uid-a"), "x": job("other", "a", "uid-x")}
WORLDS = pytest.mark.parametrize("world", [TWO, ELSEWHERE], ids=["two jobs", "one name in two namespaces"])


@WORLDS
def test_redis_hears_its_jobs_trainer_and_workers_only(world: dict[str, JobContext]):
    clients = ("a.trainer", "a.worker", "a.added")
    assert reached(world, to="a.redis") == {(client, "a.redis", "redis") for client in clients}


@WORLDS
def test_redis_says_nothing_of_its_own_accord(world: dict[str, JobContext]):
    assert reached(world, by="a.redis") == set()


@WORLDS
@pytest.mark.parametrize("worker", ["a.worker", "a.added"])
def test_workers_reach_dns_and_their_redis_only(world: dict[str, JobContext], worker: str):
    talks = reached(world, by=worker)
    assert {talk for talk in talks if talk[2] != "dns"} == {(worker, "a.redis", "redis")}
    assert (worker, "dns", "dns") in talks


@WORLDS
def test_nobody_reaches_a_worker(world: dict[str, JobContext]):
    assert reached(world, to="a.worker") == set()


@WORLDS
def test_a_trainer_hears_only_its_http_port_and_no_worker(world: dict[str, JobContext]):
    readers = {source for source, _, talk in reached(world, to="a.trainer") if talk == "http"}
    assert {"operator", "prometheus"} <= readers
    assert not [name for name in readers if name.endswith((".worker", ".added", ".redis"))]
    assert {talk for _, _, talk in reached(world, to="a.trainer")} == {"http"}


def test_a_trainer_reaches_s3_its_redis_and_dns_and_no_other_jobs_redis():
    talks = reached(TWO, by="a.trainer")
    for wanted in (("s3", "https"), ("a.redis", "redis"), ("dns", "dns")):
        assert ("a.trainer", *wanted) in talks
    assert not [talk for talk in talks if talk[1].startswith("b.redis") or talk[1].endswith(".worker")]


def test_workers_of_an_external_redis_reach_it_wherever_it_is_but_not_the_nodes_identity():
    world = {"a": job("team", "a", "uid-a", experience=EXTERNAL), "b": job("team", "b", "uid-b")}
    talks = reached(world, by="a.worker")
    assert ("a.worker", "s3", "redis") in talks
    assert ("a.worker", "prometheus", "redis") in talks
    assert {what for _, target, what in talks if target == "metadata"} == {"dns"}
    assert not [talk for talk in talks if talk[1] == "b.redis"]


SERVED = {**TWO, "p": serving("team", "p", "uid-p"), "q": serving("team", "q", "uid-q")}


@pytest.mark.parametrize("arm", ["p.stable", "p.canary"])
def test_anybody_may_ask_a_server_for_actions_and_for_nothing_else(arm: str):
    talks = reached(SERVED, to=arm)
    other = {"p.stable": "p.canary", "p.canary": "p.stable"}[arm]
    askers = {source for source, _, _ in talks}
    assert {talk for _, _, talk in talks} == {"http"}
    assert {*OUTSIDE, "a.trainer", other, "q.stable"} <= askers
    assert not [name for name in askers if name.endswith((".worker", ".added", ".redis"))]


@pytest.mark.parametrize("arm", ["p.stable", "p.canary"])
def test_a_server_reaches_s3_dns_and_the_other_arm_and_no_jobs_redis(arm: str):
    talks = {(target, talk) for _, target, talk in reached(SERVED, by=arm)}
    other = {"p.stable": "p.canary", "p.canary": "p.stable"}[arm]
    assert {("s3", "https"), ("dns", "dns"), (other, "http")} <= talks
    assert {talk for target, talk in talks if "." in target} == {"http"}
    assert not [target for target, talk in talks if talk == "ntp"]


def test_the_policy_of_one_policys_servers_is_about_no_other_pod():
    _, parties = map_of({**SERVED, "o": serving("other", "p", "uid-o")})
    only = [network_policy(serving("team", "p", "uid-p"))]
    bound = {
        name for name, party in parties.items()
        if not reaches(only, parties["neighbour"], party, *TALKS["redis"])
    }  # fmt: skip
    assert bound == {"p.stable", "p.canary"}


def test_without_policies_everybody_reaches_everybody():
    _, parties = map_of(TWO)
    assert all(
        reaches([], here, there, *talk)
        for here, there, talk in product(parties.values(), parties.values(), TALKS.values())
    )
