"""One PolicyDeployment under load that counts every answer, and what the rollout tests do to it."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from cluster import Json, KubectlError, Namespace, condition, eventually
from jobs import evict
from rollouts import askers, cartpoles, deployment
from rollouts.audience import Audience
from rollouts.cartpoles import Stored

from ratchet.api.v1alpha1.training import S3
from ratchet.policies.artifact import Artifact

NAME = "cartpole"
FOLDER = "tests/rollout"
OPERATOR = Namespace("ratchet-system")
OPERATOR_POD = "app.kubernetes.io/name=ratchet"
SERVERS = f"ratchet.dev/policy-deployment={NAME},ratchet.dev/component=server"
SPOILT = "spoilt"
_PHASES = ("", "RollBack", "Surge", "Stage", "Promote", "Bake")
# Each is made when a test asks for it.
MADE: dict[str, Callable[[], Artifact]] = {
    "fair": partial(cartpoles.balancing, cartpoles.GUESSES),
    "good": cartpoles.balancing,
    "good too": partial(cartpoles.balancing, seed=1),
    "good as well": partial(cartpoles.balancing, seed=2),
    "good again": partial(cartpoles.balancing, seed=4),
    "good once more": partial(cartpoles.balancing, seed=5),
    "good with a bug": partial(cartpoles.balancing, seed=6),
    "worse": partial(cartpoles.balancing, cartpoles.DROPS),
    "worse again": partial(cartpoles.balancing, cartpoles.DROPS, seed=1),
    "slow": cartpoles.slow,
    "NaN": cartpoles.not_a_number,
    "too large": cartpoles.too_large,
    SPOILT: partial(cartpoles.balancing, seed=3),
    "another action space": cartpoles.another_action_space,
}


@dataclass
class Arena:
    """A PolicyDeployment, its players, and the checkpoints that it can be given.

    Attributes:
        client: of the cluster's S3 server.

    """

    namespace: Namespace
    client: Any
    stored: dict[str, Stored] = field(default_factory=dict[str, Stored])
    begun: Json = field(default_factory=dict[str, Any])

    @property
    def audience(self) -> Audience:
        return Audience(self.namespace.kubectl, NAME)

    def policy(self, which: str) -> Stored:
        """One of `MADE`, in the bucket."""
        if which not in self.stored:
            bucket = S3(bucket=deployment.BUCKET, prefix=FOLDER)
            folder = which.replace(" ", "-")
            self.stored[which] = cartpoles.store(
                self.client, bucket, folder, MADE[which](), spoilt=which == SPOILT
            )
        return self.stored[which]

    def open(self, first: str, **spec: Any) -> None:
        """Begins with a policy that serves, and players."""
        self.namespace.apply(deployment.manifest(NAME, deployment.source(self.policy(first)), **spec))
        self.settled(first)
        self.play()

    def play(self, *flags: str) -> None:
        self.audience.start("--rate=100", "--players=8", "--masked=25", *flags)
        eventually("the players are answered", lambda: (r := self.audience.report()) and r["valid"] > 0)

    @contextmanager
    def asked_anew(self) -> Iterator[None]:
        """Others ask too meanwhile, each request on a connection of its own and never again; all get answers.

        Players keep their connections, and so don't see where the Service would send a new one.
        """
        program = Path(askers.__file__)
        others = Audience(self.namespace.kubectl, NAME, program=program, flags=(), name="askers")
        others.start("--rate=25")
        try:
            eventually("they are answered", lambda: (r := others.report()) and r["valid"] > 0)
            yield
            eventually("nobody is on the way out", lambda: len(self.servers()) == len(self.pods()))
            report = others.end(eventually)
        finally:
            others.stop()
        print(f"{report['requests']} requests had connections of their own")  # noqa: T201
        assert report["valid"] == report["requests"], report

    def offer(self, which: str, **spec: Any) -> Stored:
        """Changes the spec's source, and other fields with it."""
        policy = self.policy(which)
        self.patch({"source": deployment.source(policy), **spec})
        return policy

    def command(self, verb: str) -> None:
        """As `ratchet rollout` does."""
        order = f"ratchet.dev/rollout={verb}/{uuid4().hex[:8]}"
        self.namespace.kubectl("annotate", "rlpd", NAME, "--overwrite", order)

    def patch(self, spec: Json) -> None:
        self.namespace.patch("rlpd", NAME, {"spec": spec})

    def get(self) -> Json:
        found = self.namespace.find("rlpd", NAME)
        assert found is not None
        return found

    def status(self) -> Json:
        return deployment.status(self.get())

    def settled(self, which: str) -> None:
        """Waits until a policy serves everybody and nothing is on trial."""
        digest = self.policy(which).digest

        def serves() -> bool:
            status = self.status()
            arm = status.get("stable") or {}
            return arm.get("digest") == digest and not status.get("trial") and arm.get("ready", 0) >= 2

        eventually(f"{which} serves", serves)

    def serves(self, *which: str) -> str:
        """The first of these policies, which serves everybody from now on, whatever was before."""
        now = deployment.stable(self.get())
        found = next(
            (one for one in which if one in self.stored and self.stored[one].digest == now), which[0]
        )
        self.offer(found)
        self.settled(found)
        return found

    def ended(self, policy: Stored, deadline: float = 240) -> Json:
        """How the trial of a policy ended."""
        return eventually(
            "the trial ends", lambda: deployment.ending(self.get(), policy.digest), deadline=deadline
        )

    def phase(self) -> tuple[str, int]:
        """Of the trial, and its stage; empty where nothing is on trial."""
        trial = self.status().get("trial") or {}
        return trial.get("phase", ""), trial.get("stage", 0)

    def is_past(self, point: tuple[str, int], policy: Stored) -> bool:
        """Whether a policy's trial is at a phase and stage, or further."""
        phase, stage = self.phase()
        return deployment.stable(self.get()) == policy.digest or (_PHASES.index(phase), stage) >= (
            _PHASES.index(point[0]),
            point[1],
        )

    def awaits(self, reason: str) -> Json:
        """The condition that says what the rollout is at, once it has this reason."""
        return eventually(
            f"it says {reason}",
            lambda: (now := condition(self.get(), "Progressing")).get("reason") == reason and now,
        )

    def records(self, action: str) -> list[Json]:
        """Verdicts that acted so."""
        return [one for one in self.status().get("decisions", []) if one["action"] == action]

    def verdicts(self) -> set[str]:
        """Of the guards on the present trial."""
        return {one["verdict"] for one in self.status().get("decisions", [])}

    def words(self) -> str:
        """What the servers have said."""
        return "\n".join(self.namespace.logs(pod["metadata"]["name"]) for pod in self.servers())

    def pods(self) -> list[Json]:
        """Of all servers."""
        return self.namespace.list("pods", SERVERS)

    def servers(self) -> list[Json]:
        """Pods that serve, and are not on their way out."""
        return [pod for pod in self.pods() if "deletionTimestamp" not in pod["metadata"]]

    def evicted(self, pod: Json) -> bool:
        """Whether the disruption budget let a pod go."""
        try:
            evict(self.namespace, pod)
        except KubectlError as error:
            if "disruption budget" not in str(error):
                raise
            return False
        return True

    def pending(self) -> list[Json]:
        """Servers for which there is no node."""
        return [pod for pod in self.servers() if pod["status"]["phase"] == "Pending"]

    def waits(self, since: str, seconds: float) -> bool:
        """Whether something has lasted so long."""
        return time.time() - datetime.fromisoformat(since).timestamp() > seconds

    def restarts(self, pod: Json) -> int:
        """Of a server's container."""
        found = self.namespace.find("pod", pod["metadata"]["name"]) or {}
        return sum(one["restartCount"] for one in found.get("status", {}).get("containerStatuses", []))

    def events(self, reason: str) -> list[str]:
        """What was said of the PolicyDeployment."""
        selector = f"involvedObject.name={NAME},reason={reason}"
        events = json.loads(
            self.namespace.kubectl("get", "events", "--field-selector", selector, "-o", "json")
        )["items"]
        return [event["message"] for event in events]

    def kill_operator(self) -> None:
        OPERATOR.kubectl("delete", "pod", "-l", OPERATOR_POD, "--grace-period=0", "--force", "--wait=false")

    def report(self) -> Json:
        """What the players have counted up to now, or later."""
        now = time.time()
        return eventually(
            "the players say how it goes",
            lambda: (r := self.audience.report()) and (r["time"] >= now or r["ended"]) and r,
        )

    def mark(self) -> None:
        """What is counted from here on is this test's."""
        self.begun = self.report()

    def assert_nobody_noticed(self, evicted: str | None = None, *, retried: bool = False) -> Json:
        """Every request since the mark got a valid answer, at once, and no episode changed its policy.

        Args:
            evicted: a policy that was taken out, from which episodes had to go.
            retried: where a server died, requests to it may have had to be sent again.

        """
        report, begun = self.report(), self.begun
        assert report["valid"] > begun["valid"]
        # Those that are on their way are neither valid nor failed yet.
        assert (report["failed"], report["invalid"]) == (begun["failed"], begun["invalid"]), report
        again = report["retries"] - begun["retries"]
        print(f"{again} of {report['requests'] - begun['requests']} requests were sent again")  # noqa: T201
        assert retried or not again, report["retried"][-again:]
        moved = {
            policy: count - begun["changed"].get(policy, 0) for policy, count in report["changed"].items()
        }
        assert {policy for policy, count in moved.items() if count} <= {evicted}, report["changes"]
        return report

    def __str__(self) -> str:
        return f"namespace {self.namespace.name}"

    def diary(self) -> str:
        """The PolicyDeployment, its book and its players, for a person who looks into a failure."""
        kubectl = self.namespace.kubectl
        return "\n".join(
            [
                kubectl("get", "rlpd,configmaps", "-o", "yaml"),
                json.dumps(self.audience.report(), indent=1),
                self.namespace.diary(),
            ]
        )
