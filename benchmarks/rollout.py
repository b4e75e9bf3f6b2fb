"""How fast a bad policy is gone, what users saw of it, and how fast servers follow the load, on the cluster.

Usage: python benchmarks/rollout.py [--only NAME …] [--rate N]

Each case offers a policy to a PolicyDeployment under open-loop load, half of which the canary gets at once:
what is timed is the judgement, and not the way through the stages. Times are the players' own, from the first
answer that was bad, or came from elsewhere because the canary's was, to the last one on the canary's arm.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "hack"))

from rollouts import bucket, cartpoles, deployment
from rollouts.audience import Audience
from rollouts.cartpoles import Stored
from rollouts.cluster import Kubectl, eventually, signal_container

from ratchet.api.v1alpha1.training import S3
from ratchet.policies.artifact import Artifact

Json = dict[str, Any]
NAMESPACE, NAME = "rollout-benchmark", "cartpole"
kubectl = Kubectl(NAMESPACE)
STRATEGY: Json = {
    "type": "Canary",
    "canary": {"steps": [{"weight": 50, "minDuration": "30s"}]},
    "bake": "2s",
    "cooldown": "1s",
}


@dataclass(frozen=True, slots=True)
class Case:
    """A way to be bad.

    Attributes:
        make: the policy.
        guards: that are changed for it.
        signal: that its servers get once it has traffic.

    """

    make: Callable[[], Artifact]
    guards: Json
    signal: str = ""


CASES = {
    "its servers die": Case(lambda: cartpoles.balancing(seed=9), {}, "SIGKILL"),
    "its servers hang": Case(lambda: cartpoles.balancing(seed=8), {}, "SIGSTOP"),
    "NaN": Case(cartpoles.not_a_number, {}),
    "one error in twenty": Case(cartpoles.not_a_number, {"nan": {"enabled": False}}),
    "many times slower": Case(cartpoles.slow, {}),
    "returns of 9 instead of 50": Case(lambda: cartpoles.balancing(cartpoles.DROPS), {}),
}


def get() -> Json:
    """The PolicyDeployment."""
    return json.loads(kubectl("get", "policydeployment", NAME, "-o", "json"))


def patch(spec: Json) -> None:
    """Changes its spec."""
    kubectl("patch", "policydeployment", NAME, "--type=merge", "-p", json.dumps({"spec": spec}))


def settled(digest: str) -> None:
    """Waits until a policy serves everybody."""
    eventually(
        "it serves",
        lambda: deployment.stable(found := get()) == digest and not deployment.status(found).get("trial"),
    )


def apply(manifest: Json) -> None:
    """Creates or changes an object."""
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(manifest))


def strike(policy: Stored, signal: str) -> None:
    """Sends a signal to each server of a policy."""
    servers = f"ratchet.dev/policy-deployment={NAME}"
    for pod in json.loads(kubectl("get", "pods", "-l", servers, "-o", "json"))["items"]:
        if f"--digest={policy.digest}" in pod["spec"]["containers"][0]["args"]:
            signal_container(pod, signal)


def measure(case: Case, bad: Stored, good: Stored, audience: Audience, rate: float) -> Json:
    """One trial of a bad policy: what the players met."""
    guards = deployment.manifest(NAME, {})["spec"]["guards"]
    patch({"guards": {**guards, "nan": {"enabled": True}, **case.guards}, "source": deployment.source(good)})
    settled(good.digest)
    audience.start(f"--rate={rate:g}", "--players=8")
    eventually("the players are answered", lambda: (r := audience.report()) and r["valid"])
    patch({"source": deployment.source(bad)})
    eventually("it has traffic", lambda: (r := audience.report()) and r["canary"]["answers"] > 20)
    if case.signal:
        strike(bad, case.signal)
    past = eventually("it is taken out", lambda: deployment.ending(get(), bad.digest))
    report = audience.end(eventually)
    audience.stop()
    from_elsewhere = report["instead"]["first"]
    of_it = report["policies"].get(bad.policy, {"first": 0.0, "last": 0.0})
    first = from_elsewhere if case.signal or "nan" in bad.uri or not of_it["first"] else of_it["first"]
    return {
        "outcome": past["outcome"],
        "seconds": max(report["canary"]["last"], of_it["last"]) - (first or of_it["first"]),
        "answers": report["canary"]["answers"],
        "instead": report["instead"]["answers"],
        "failed": report["failed"],
        "changed": sum(n for policy, n in report["changed"].items() if policy != bad.policy),
        "requests": report["requests"],
        "why": past["message"],
    }


def autoscale(audience: Audience, good: Stored) -> float:
    """Seconds from ten times the load to the first further server that is ready."""
    patch(
        {
            "source": deployment.source(good),
            "replicas": 1,
            "autoscaling": {"maxReplicas": 4, "cpuPercent": 50},
        }
    )
    settled(good.digest)
    eventually("one server is left", lambda: deployment.status(get())["stable"].get("ready") == 1)
    audience.start("--rate=400", "--players=16")
    eventually("the players are answered", lambda: (r := audience.report()) and r["valid"])
    begun = time.monotonic()
    eventually("a second server is ready", lambda: deployment.status(get())["stable"].get("ready", 0) > 1)
    seconds = time.monotonic() - begun
    audience.stop()
    return seconds


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[*CASES, "autoscale"])
    parser.add_argument("--rate", type=float, default=200)
    arguments = parser.parse_args()
    secret = json.loads(Kubectl("ratchet-s3")("get", "secret", "s3-credentials", "-o", "json"))
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    metadata = {"name": "s3-credentials"}
    apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": secret["data"]})
    audience = Audience(kubectl, NAME)
    with bucket.reached() as client:
        place = S3(bucket=deployment.BUCKET, prefix=NAMESPACE)
        good = cartpoles.store(client, place, "good", cartpoles.balancing())
        kubectl("delete", "policydeployment", NAME, "--ignore-not-found", "--wait")
        apply(deployment.manifest(NAME, deployment.source(good), strategy=STRATEGY))
        settled(good.digest)
        print(f"{arguments.rate:g} requests/s, half of the episodes to the policy on trial\n")
        print("| policy | seconds, first bad answer to last | not by itself | requests | failed | moved |")
        print("| --- | --- | --- | --- | --- | --- |")
        for name, case in CASES.items():
            if name in arguments.only:
                bad = cartpoles.store(client, place, name.replace(" ", "-"), case.make())
                met = measure(case, bad, good, audience, arguments.rate)
                print(
                    f"| {name} | {met['seconds']:.2f} | {met['instead']} of {met['answers']} | "
                    f"{met['requests']} | {met['failed']} | {met['changed']} |\n<!-- {met['why']} -->",
                    flush=True,
                )
        if "autoscale" in arguments.only:
            seconds = autoscale(audience, good)
            print(f"\nFrom 400 requests/s on one server to a second one that is ready: {seconds:.1f} s")
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


if __name__ == "__main__":
    main()
