"""A small cluster with policy servers in it, and clients who count: what PolicyDeployments live in.

Its invariants are held at each write and at each request, not only in the end.
"""

import copy
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from ratchet_operator.build.waking import MANAGER_LABEL, SERVICE_LABEL, Door, door_name, leads_to
from ratchet_operator.kept import kept_by
from ratchet_operator.kinds import (
    AUTOSCALER,
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    ENDPOINT_SLICE,
    NETWORK_POLICY,
    POD,
    POLICY_DEPLOYMENT,
    REVISION_LABEL,
    SERVICE,
    SERVING_LABEL,
    TRAINING_JOB,
    Json,
    is_owned_by,
    labels_of,
    name_of,
    spec_of,
    status_of,
    sub,
    uid_of,
)
from ratchet_operator.plan import Apply
from ratchet_operator.policies.waiting import is_ready
from ratchet_operator.reconcile.serving import reconcile_serving
from ratchet_operator.reconcile.servinggateway import Looked
from ratchet_operator.reconcile.servingseen import Heard, ServingSeen
from ratchet_operator.rollout.book import Book, read_book
from ratchet_operator.rollout.judging import PodAnswer
from ratchet_operator.rollout.observed import Watch, observe
from ratchet_operator.rollout.remembering import Memo
from ratchet_operator.settings import Installation
from world import NAMESPACE, ConflictError, CrashError, World

from ratchet.api.v1alpha1.policydeployment import Lineage
from ratchet.api.v1alpha1.serverstats import (
    LATENCY_BOUNDS_SECONDS,
    ArmStats,
    Latency,
    Route,
    RouteStats,
    ServerStats,
)

NAME = "x"
REPLICAS = 2
IDLE_SECONDS = 2.0
REQUESTS = 40  # in a second
POLICIES = ("good", "better", "best", "worse", "broken")
LINEAGES = {"good": Lineage(attempt=2, configuration="sha256:as-it-was")}
"""What a policy says of itself."""
WORSE, BROKEN = "worse", "broken"
KINDS = (DEPLOYMENT, SERVICE, AUTOSCALER, DISRUPTION_BUDGET, NETWORK_POLICY, ENDPOINT_SLICE)
KNOCK_SECONDS = 10.0
SPEC: Json = {
    "replicas": REPLICAS,
    "strategy": {
        "type": "Canary",
        "canary": {"steps": [{"weight": 20, "minDuration": "2s"}, {"weight": 50, "minDuration": "2s"}]},
        "bake": "3s",
        "progressDeadline": "30s",
        "cooldown": "1s",
        "attempts": 2,
    },
    "guards": {
        "errorRate": {"minimum": 20},
        "fallbackRate": {"enabled": False},
        "latency": {"enabled": False},
        "restarts": {"enabled": False},
    },
}


def digest_of(policy: str) -> str:
    """Of the checkpoint with a policy."""
    return f"sha256:{POLICIES.index(policy):064x}"


def source(policy: str) -> Json:
    """Names a checkpoint."""
    s3 = {"bucket": "bucket", "prefix": f"{NAMESPACE}/job/uid-j/manifests/{policy}.json"}
    return {"type": "Checkpoint", "checkpoint": {"s3": s3, "digest": digest_of(policy)}}


@dataclass
class Server:
    """The process in one pod."""

    arm: str
    policy: str
    incarnation: str
    route: Route
    began: datetime
    websockets: int = 0
    requests: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    errors: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    last: dict[tuple[str, str], datetime] = field(default_factory=dict[tuple[str, str], datetime])

    def count(self, arm: str, policy: str, now: datetime, error: bool = False) -> None:
        self.requests[arm, policy] += 1
        self.errors[arm, policy] += error
        self.last[arm, policy] = now

    def stats(self, now: datetime) -> ServerStats:
        return ServerStats(
            incarnation=self.incarnation,
            uptime_seconds=(now - self.began).total_seconds(),
            ready=True,
            draining=False,
            current=self.policy,
            websockets=self.websockets,
            spaces="same",
            lineage=LINEAGES.get(self.policy),
            route=RouteStats(**self.route.model_dump()),
            latency_bounds_seconds=list(LATENCY_BOUNDS_SECONDS),
            arms=[
                ArmStats(
                    arm=arm,
                    digest=policy,
                    requests=number,
                    predictions=number,
                    errors={"canary-error": self.errors[arm, policy]} if self.errors[arm, policy] else {},
                    latency=Latency(counts=[number] + [0] * len(LATENCY_BOUNDS_SECONDS)),
                    seconds_since_request=(now - self.last[arm, policy]).total_seconds(),
                )
                for (arm, policy), number in self.requests.items()
            ],
        )


class ServingWorld(World):
    """One PolicyDeployment, its servers and its clients."""

    def __init__(self, first: str = "good", **spec: Any) -> None:
        super().__init__()
        self.servers: dict[str, Server] = {}
        self.memo = Memo()
        self.watch = Watch()
        self.heard = Heard()
        self.is_reachable = True
        self.is_busy = True
        self.bereaved = True  # nothing was ready yet, or all of what serves was killed
        self.failed = 0
        self.held = 0
        self.leader = 0
        self.has_port = True
        self.knocked = self.now - timedelta(days=1)
        self.answered: Counter[str] = Counter()
        self.ticks = 0
        self.put(
            {
                "kind": "PolicyDeployment",
                "metadata": {"name": NAME},
                "spec": {**copy.deepcopy(SPEC), "source": source(first), **spec},
            }
        )

    @property
    def deployment(self) -> Json:
        found = self.get(POLICY_DEPLOYMENT, NAME)
        assert found is not None
        return found

    def edit(self, **spec: Any) -> None:
        self.put({**self.deployment, "spec": {**spec_of(self.deployment), **spec}})

    def order(self, command: str) -> None:
        metadata = {**self.deployment["metadata"], "annotations": {"ratchet.dev/rollout": command}}
        self.put({**self.deployment, "metadata": metadata})

    def arms(self) -> dict[str, list[Json]]:
        """Ready pods by arm."""
        found: dict[str, list[Json]] = {}
        for pod in self.all(POD):
            found.setdefault(labels_of(pod)[REVISION_LABEL], []).extend([pod] if is_ready(pod) else [])
        return found

    # what the operator does

    def apply(self, apply: Apply) -> None:
        if apply.kind is CONFIG_MAP:
            before = self.routes()
            super().apply(apply)
            self._nobody_is_sent_to_what_is_not_ready(before)
        else:
            ledger = self.get(CONFIG_MAP, f"{NAME}-rollout")
            assert kept_by(apply.obj) <= kept_by(ledger), "a server starts from what its job may remove"
            if apply.kind is DEPLOYMENT and labels_of(apply.obj)[REVISION_LABEL] == self.selected():
                wanted = spec_of(self.deployment).get("replicas", REPLICAS)
                if not apply.obj["spec"]["replicas"]:
                    assert self.is_door_open, "what serves went to sleep, and nobody is there to wake it"
                    wanted = 0
                assert apply.obj["spec"]["replicas"] >= wanted, "what serves lost capacity"
            super().apply(apply)

    def _nobody_is_sent_to_what_is_not_ready(self, before: dict[str, Route]) -> None:
        ready = {f"http://{NAME}-{arm}:8080": len(pods) for arm, pods in self.arms().items()}
        for arm, route in self.routes().items():
            old = before.get(arm, Route())
            # An arm that clients are no longer sent to may still have connections; it answers where none can.
            if arm == self.selected() and route.weight > (old.weight if old.canary == route.canary else 0):
                assert ready.get(route.canary or ""), f"{arm} sends to {route.canary}, where nobody is ready"

    def delete(self, kind: str, name: str) -> None:
        live = self.objects.get((kind, name))
        if (
            live is not None
            and kind == DEPLOYMENT.kind
            and self.get(POLICY_DEPLOYMENT, NAME)
            and self.operating
        ):
            arm = labels_of(live)[REVISION_LABEL]
            assert self.selected() != arm, "what serves was scaled down"
            for pod, server in self.servers.items():
                is_there = self.get(POD, pod) is not None and server.arm != arm
                sends = server.route.canary == f"http://{NAME}-{arm}:8080" and server.route.weight > 0
                assert not (is_there and sends), "an arm was scaled down to which a server still sends"
        if kind == ENDPOINT_SLICE.kind and name == door_name(NAME) and self.operating:
            assert self.bereaved or self.published(), "the door went before a pod was found without it"
        super().delete(kind, name)

    operating = False

    def operate(self, seen: World | None = None) -> None:
        view = seen if isinstance(seen, ServingWorld) else self
        self.waits = []
        for obj in view.all(POLICY_DEPLOYMENT):
            plan = reconcile_serving(copy.deepcopy(obj), view.seen(obj), self.now)
            if isinstance(plan.memo, Memo):
                self.memo = plan.memo
            self.waits += [plan.requeue_after] if plan.requeue_after is not None else []
            self.operating = True
            try:
                self.execute(POLICY_DEPLOYMENT, NAME, plan)
            except ConflictError:
                self.waits.append(0.0)
            finally:
                self.operating = False

    def seen(self, obj: Json) -> ServingSeen:
        return ServingSeen(
            Installation(),
            config_map=self.get(CONFIG_MAP, f"{NAME}-rollout"),
            children={kind: {name_of(one): one for one in self.all(kind)} for kind in KINDS},
            pods=tuple(self.all(POD)),
            job=self.get(TRAINING_JOB, "job"),
            secrets={f"{NAME}-admin": self.secret_uid},
            heard=self.heard,
            door=self.door,
            memo=self.memo,
        )

    def restart(self) -> None:
        """Another operator takes over: it knows what the cluster says, and nothing else."""
        self.memo, self.watch, self.heard = Memo(), Watch(), Heard()
        self.leader += 1
        self.knocked -= timedelta(days=1)
        self.loses_its_way()

    @property
    def door(self) -> Door:
        is_asked = (self.now - self.knocked).total_seconds() < KNOCK_SECONDS
        port = 20_000 + self.leader if self.has_port else None
        return Door(f"10.0.0.{self.leader % 250}", port, self.held, is_asked)

    @property
    def is_door_open(self) -> bool:
        """Whether clients find this operator's door."""
        return leads_to(self.get(ENDPOINT_SLICE, door_name(NAME)), self.door)

    def loses_its_way(self) -> None:
        """Whoever asks while nothing is ready finds nobody until the operator has come to itself."""
        self.bereaved |= not self.arms().get(self.selected() or "")
        self.held = 0

    def crash(self, writes: int) -> None:
        """The operator dies after so many writes."""
        self.die_after = writes
        try:
            self.operate()
        except CrashError:
            self.restart()
        self.die_after = None

    def ask(self) -> None:
        """As `servers.ServerWatch` does."""
        config_map = self.get(CONFIG_MAP, f"{NAME}-rollout")
        if config_map is None or not is_owned_by(config_map, uid_of(self.deployment)):
            return
        book, routes = read_book(config_map, (), None), self.routes()
        answers: list[PodAnswer] = []
        for pod in self.all(POD):
            server = self.servers.get(name_of(pod))
            if not is_ready(pod) or server is None:
                continue
            route = routes.get(server.arm)
            if self.is_reachable and route is not None and server.route.generation < route.generation:
                server.route = route
            stats = server.stats(self.now) if self.is_reachable else None
            answers.append(PodAnswer(uid_of(pod), server.arm, stats))
        split, looked = book.routed.split, self.look(book)
        is_followed = looked is None or looked.is_followed
        if answers:
            self.watch, followed, traffic = observe(
                self.watch, split, routes, answers, self.now, IDLE_SECONDS, by_gateway=is_followed
            )
            self.heard = Heard(tuple(answers), book.generation, followed, traffic, gateway=looked)
        else:
            followed = split if is_followed else None
            self.heard = Heard((), book.generation, followed, {}, gateway=looked)

    def look(self, book: Book) -> Looked | None:
        """At the user's HTTPRoute; here there is none."""
        return None

    # what the rest of the cluster does

    def routes(self) -> dict[str, Route]:
        data = sub(self.get(CONFIG_MAP, f"{NAME}-rollout"), "data")
        return {key.removesuffix(".json"): Route.model_validate_json(text) for key, text in data.items()}

    def selected(self) -> str | None:
        return sub(self.get(SERVICE, NAME), "spec", "selector").get(REVISION_LABEL)

    def published(self) -> list[str]:
        """Addresses of pods that clients of the Service find."""
        slice_ = self.get(ENDPOINT_SLICE, f"{NAME}-own")
        return [host for one in (slice_ or {}).get("endpoints", []) for host in one["addresses"]]

    def publish(self) -> None:
        """As the controller of EndpointSlices does, some time after pods are ready."""
        service = self.get(SERVICE, NAME)
        if service is not None:
            labels = {
                **labels_of(service),
                SERVICE_LABEL: NAME,
                MANAGER_LABEL: "endpointslice-controller.k8s.io",
            }
            owner = {"kind": "Service", "uid": uid_of(service), "controller": True}
            metadata = {"name": f"{NAME}-own", "labels": labels, "ownerReferences": [owner]}
            hosts = [status_of(pod)["podIP"] for pod in self.arms().get(self.selected() or "", [])]
            endpoints = [{"addresses": [host], "conditions": {"ready": True}} for host in hosts]
            self.put({"kind": ENDPOINT_SLICE.kind, "metadata": metadata, "endpoints": endpoints})

    def turn(self) -> None:
        for service in self.all(SERVICE):
            assert labels_of(service)[SERVING_LABEL] == NAME
        self.publish()
        for deployment in self.all(DEPLOYMENT):
            template, count = deployment["spec"]["template"], deployment["spec"]["replicas"]
            names = [f"{name_of(deployment)}-{number}" for number in range(count)]
            self._pods(deployment, template, names, exact=False)
        routes = self.routes()
        for pod in self.all(POD):
            arm = labels_of(pod)[REVISION_LABEL]
            arguments = " ".join(sub({"c": pod["spec"]["containers"][0]}, "c")["args"])
            policy = next(one for one in POLICIES if digest_of(one) in arguments)
            status = pod["status"]
            status["phase"] = "Running"
            if policy == BROKEN or is_ready(pod):
                continue
            status["conditions"] = [{"type": "Ready", "status": "True"}]
            status["podIP"] = f"10.1.0.{uid_of(pod)}"
            incarnation = f"{uid_of(pod)}/{self.ticks}"
            route = routes.get(arm, Route())
            self.servers[name_of(pod)] = Server(arm, policy, incarnation, route, self.now)

    def ask_for_actions(self) -> None:
        """A second of clients' requests."""
        ready = self.arms()
        pods = ready.get(self.selected() or "", [])
        if not pods and self.is_door_open:
            self.held += REQUESTS if self.is_busy else 0
            self.knocked = self.now if self.is_busy else self.knocked
            return
        if not pods:
            self.failed += 0 if self.bereaved or not self.is_busy else REQUESTS
            return
        self.held = 0
        # The first policy of all may be taken back before it was ever stable, and then there is none.
        self.bereaved = self.bereaved and self.serving is None
        for number in range(REQUESTS if self.is_busy else 0):
            self.answer(self.servers[name_of(pods[number % len(pods)])], number, ready)

    def answer(
        self, server: Server, number: int, ready: dict[str, list[Json]], has_episode: bool = True
    ) -> str:
        """One request, which comes to a server; returns the policy that answered it."""
        route = server.route
        # Of every forty requests the first ones are the canary's.
        is_below = number * 100 / REQUESTS < route.weight * 100
        is_theirs = is_below != (route.gateway == "Canary") and (has_episode or route.gateway is None)
        if route.canary is None or not is_theirs:
            server.count("stable", server.policy, self.now, server.policy == WORSE)
            self.answered[server.policy] += 1
            return server.policy
        others = ready.get(route.canary.removeprefix(f"http://{NAME}-").removesuffix(":8080"), [])
        other = self.servers[name_of(others[number % len(others)])] if others else None
        if other is not None:
            other.count("canary", other.policy, self.now)
        failed = other is None or other.policy == WORSE
        server.count("canary", route.digest or "", self.now, failed)
        if failed:
            server.count("stable", server.policy, self.now)
        policy = server.policy if other is None or failed else other.policy
        self.answered[policy] += 1
        return policy

    def second(self) -> None:
        """All of it, once."""
        self.ticks += 1
        self.now += timedelta(seconds=1)
        self.turn()
        self.ask_for_actions()
        if self.get(POLICY_DEPLOYMENT, NAME) is not None:
            self.ask()
        for _ in range(6):
            self.operate()
            if not any(wait == 0.0 for wait in self.waits):
                break

    def seconds(self, number: int) -> None:
        for _ in range(number):
            self.second()

    def settle(self, most: int = 400) -> int:
        """Until nothing is on trial and nobody writes any more; how many seconds that took."""
        quiet = 0
        for number in range(1, most):
            before = self.writes
            self.second()
            quiet = quiet + 1 if self.writes == before and self.trial is None else 0
            if quiet >= 5:
                return number
        raise AssertionError(f"still moving: {status_of(self.deployment)}")

    @property
    def trial(self) -> Json | None:
        return status_of(self.deployment).get("trial")

    @property
    def serving(self) -> str | None:
        """The policy that serves, by the status."""
        digest = sub(status_of(self.deployment), "stable").get("digest")
        return next((one for one in POLICIES if digest_of(one) == digest), None)

    def reason(self, kind: str = "Progressing") -> str:
        found = status_of(self.deployment).get("conditions", [])
        return next((one["reason"] for one in found if one["type"] == kind), "")
