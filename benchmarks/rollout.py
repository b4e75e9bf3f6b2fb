"""How fast a bad policy is gone and what users saw of it, beside Argo Rollouts, on the cluster.

Usage: python benchmarks/rollout.py [--quick] [--only PART …] [--repeats N] [--healthy N] [--rate N]

In each part a new policy gets half of the requests at once: what is timed is the judgement, and not the way
through the stages.

- `side by side`: the canary answers every request with 500; 50 requests a second, each on a connection of its
  own and never asked twice. The time is from the first request that reached the canary to the last, by the
  canary's own log, without the copies that nobody waits for; *failed* are those that the client got no answer
  to. Ratchet judges by its default guards;
  Argo by a Prometheus that scrapes each second, at several intervals, with the surge that it has by default,
  and with one that lets the canary go at once.
- `healthy`: both arms answer one request in 200 with 500, the limit is one in a hundred, 20 requests a second
  for two minutes. How many are taken out all the same. All run at once; a canary of Argo is judged by three
  AnalysisRuns, each of which would have aborted it by itself.
- each way to be bad, for Ratchet alone, under players of CartPole: from the first answer that was bad, or
  came from elsewhere because the canary's was, to the last one on the canary's arm.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "hack"))

from argo_rollouts import installed
from rollout_contestants import IMAGE, Argo, Contestant, Overheard, Ratchet, Release, analysis, library
from rollouts import askers, bucket, cartpoles, deployment
from rollouts.audience import Audience
from rollouts.cartpoles import Stored
from rollouts.cluster import Kubectl, eventually, signal_container
from rollouts.objects import Objects, is_ready

from ratchet.api.v1alpha1.training import S3
from ratchet.policies.artifact import Artifact

Json = dict[str, Any]
NAMESPACE, NAME = "rollout-benchmark", "cartpole"
ASKERS = Path(askers.__file__)
SIDE_BY_SIDE, HEALTHY = "side by side", "healthy"
ALWAYS, RARELY = "fails-always", "fails-rarely"
INTERVALS = ((5, 10), (10, 30), (10, 60))
HEALTHY_SECONDS = 120
AT_ONCE = 2
kubectl = Kubectl(NAMESPACE)
objects = Objects(kubectl)
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


@dataclass(frozen=True, slots=True)
class Store:
    """Policies in the bucket of the local cluster."""

    client: Any
    seeds: Iterator[int]

    def keep(self, name: str, policy: Artifact) -> Stored:
        """A policy under a name."""
        return cartpoles.store(
            self.client, S3(bucket=deployment.BUCKET, prefix=NAMESPACE), name.replace(" ", "-"), policy
        )

    def another(self, fault: str = "") -> Release:
        """A release that nobody has seen before, of a good policy."""
        seed = next(self.seeds)
        return Release(self.keep(f"good-{seed}", cartpoles.balancing(seed=seed)), fault)


@dataclass(frozen=True, slots=True)
class Met:
    """What became of one canary that answers nothing but 500.

    Attributes:
        seconds: from the first request that reached it to the last one, without copies.
        requests: that reached it, likewise.
        failed: of the users.

    """

    seconds: float
    requests: int
    failed: int


def hears(audience: Audience) -> None:
    """Waits until somebody was answered."""
    eventually("they are answered", lambda: (r := audience.report()) and r["valid"])


def tried(one: Contestant, good: Release, bad: Release) -> Met:
    """One canary that answers nothing but 500."""
    one.serve(good)
    audience = Audience(kubectl, one.name, program=ASKERS, flags=())
    audience.start("--rate=50")
    hears(audience)
    with Overheard(kubectl) as said:

        def ended() -> bool:
            said.listen(one.canaries(bad))
            return one.ended(bad)

        one.offer(bad)
        eventually(f"{one.title}: it is taken out", ended)
        eventually(f"{one.title}: its servers are gone", lambda: not one.canaries(bad))
        requests, first, last = said.asked()
    report = audience.end(eventually)
    audience.stop()
    one.remove()
    return Met(last - first, requests, report["failed"])


def side_by_side(store: Store, prometheus: str, repeats: int, quick: bool) -> None:
    """Prints what users saw of it under each contestant."""
    ratchet = Ratchet(objects)
    rivals = [
        Argo(objects, prometheus, "argo-1s", interval=1, window=5),
        Argo(objects, prometheus, "argo-1s-at-once", interval=1, window=5, unavailable="50%"),
        Argo(objects, prometheus, "argo-5s-at-once", interval=5, window=10, unavailable="50%"),
        Argo(objects, prometheus, "argo-10s-at-once", interval=10, window=30, unavailable="50%"),
    ]
    contestants: list[Contestant] = [ratchet, *(rivals[1:2] if quick else rivals)]
    objects.apply(library(ALWAYS, 1.0))
    good = store.another()
    met: dict[str, list[Met]] = {one.name: [] for one in contestants}
    for _ in range(repeats):
        for one in contestants:
            met[one.name].append(tried(one, good, store.another(ALWAYS)))
            print(f"<!-- {one.title}: {met[one.name][-1]} -->", flush=True)
    print(
        f"\nThe canary answers 500 always; 50 requests/s, half of them the canary's; {repeats} times each\n"
    )
    print("| | seconds, first request to last | ratio | requests that reached it | failed for users |")
    print("| --- | --- | --- | --- | --- |")
    ours = statistics.median(one.seconds for one in met[ratchet.name])
    for one in contestants:
        took = [each.seconds for each in met[one.name]]
        print(
            f"| {one.title} | {spread(took, '.2f')} | {statistics.median(took) / ours:.1f} | "
            f"{spread([each.requests for each in met[one.name]])} | "
            f"{spread([each.failed for each in met[one.name]])} |",
            flush=True,
        )


def spread(values: Sequence[float], form: str = "g") -> str:
    """Median and range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def healthy(store: Store, prometheus: str, runs: int) -> None:
    """Prints how often a canary is taken out that fails no more often than what serves."""
    objects.apply(library(RARELY, 0.005))
    wrong = dict.fromkeys(["Ratchet", *(f"Argo, each {i} s over {w} s" for i, w in INTERVALS)], 0)
    for first in range(0, runs, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, runs))
        ours = [Ratchet(objects, f"ratchet-{n}", HEALTHY_SECONDS, replicas=1) for n in numbers]
        theirs = [Argo(objects, prometheus, f"argo-{n}", replicas=2, watched=False) for n in numbers]
        both: list[Contestant] = [*ours, *theirs]
        pairs = [(one, store.another(RARELY), store.another(RARELY)) for one in both]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for beginning in [pool.submit(begun, *pair) for pair in pairs]:
                beginning.result()
        runs_of = {(one.name, at): judged(one, prometheus, *at) for one in theirs for at in INTERVALS}
        end = time.monotonic() + HEALTHY_SECONDS
        for (_, (interval, window)), name in runs_of.items():
            phase = eventually("an analysis ends", lambda name=name: verdict_of(name), 2 * HEALTHY_SECONDS)
            wrong[f"Argo, each {interval} s over {window} s"] += phase != "Successful"
        eventually("the time is over", lambda end=end: time.monotonic() >= end, 2 * HEALTHY_SECONDS)
        for one, (_, _, canary) in zip(ours, pairs, strict=False):
            if one.ended(canary):
                wrong["Ratchet"] += 1
                print(f"<!-- {one.name}: {one.why(canary)} -->")
        for one, *_ in pairs:
            Audience(kubectl, one.name).stop()
            one.remove()
    print(f"\nBoth arms fail in 0.5%, 20 requests/s for {HEALTHY_SECONDS} s: taken out, of {runs}\n")
    print("\n".join(["| | taken out |", "| --- | --- |", *(f"| {who} | {n} |" for who, n in wrong.items())]))


def begun(one: Contestant, good: Release, canary: Release) -> None:
    """Both arms have traffic."""
    one.serve(good)
    audience = Audience(kubectl, one.name, program=ASKERS, flags=())
    audience.start("--rate=20")
    hears(audience)
    one.offer(canary)
    eventually("the canary is ready", lambda: [pod for pod in one.canaries(canary) if is_ready(pod)])


def judged(one: Argo, prometheus: str, interval: int, window: int) -> str:
    """The name of an AnalysisRun that looks at a canary for as long as all do."""
    run = analysis(one.name, prometheus, interval, window)
    run["kind"], run["metadata"]["name"] = "AnalysisRun", f"{one.name}-{interval}-{window}"
    run["spec"]["metrics"][0]["count"] = HEALTHY_SECONDS // interval
    objects.apply(run)
    return run["metadata"]["name"]


def verdict_of(run: str) -> str:
    found = objects.find("analysisruns.argoproj.io", run) or {}
    phase = found.get("status", {}).get("phase", "")
    return phase if phase in ("Successful", "Failed", "Error", "Inconclusive") else ""


def get() -> Json:
    """The PolicyDeployment."""
    return objects.find("policydeployment", NAME) or {}


def patch(spec: Json) -> None:
    """Changes its spec."""
    objects.patch("policydeployment", NAME, {"spec": spec})


def settled(digest: str) -> None:
    """Waits until a policy serves everybody."""
    eventually(
        "it serves",
        lambda: deployment.stable(found := get()) == digest and not deployment.status(found).get("trial"),
    )


def strike(policy: Stored, signal: str) -> None:
    """Sends a signal to each server of a policy."""
    for pod in objects.list("pods", f"ratchet.dev/policy-deployment={NAME}"):
        if f"--digest={policy.digest}" in pod["spec"]["containers"][0]["args"]:
            signal_container(pod, signal)


def measure(case: Case, bad: Stored, good: Stored, audience: Audience, rate: float) -> Json:
    """One trial of a bad policy: what the players met."""
    guards = deployment.manifest(NAME, {})["spec"]["guards"]
    patch({"guards": {**guards, "nan": {"enabled": True}, **case.guards}, "source": deployment.source(good)})
    settled(good.digest)
    audience.start(f"--rate={rate:g}", "--players=8")
    hears(audience)
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


def ways_to_be_bad(store: Store, names: Sequence[str], rate: float) -> None:
    """Prints what players met of each."""
    good = store.keep("good", cartpoles.balancing())
    objects.apply(deployment.manifest(NAME, deployment.source(good), strategy=STRATEGY))
    settled(good.digest)
    audience = Audience(kubectl, NAME)
    print(f"\n{rate:g} requests/s, half of the episodes to the policy on trial\n")
    print("| policy | seconds, first bad answer to last | not by itself | requests | failed | moved |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names:
        met = measure(CASES[name], store.keep(name, CASES[name].make()), good, audience, rate)
        print(
            f"| {name} | {met['seconds']:.2f} | {met['instead']} of {met['answers']} | "
            f"{met['requests']} | {met['failed']} | {met['changed']} |\n<!-- {met['why']} -->",
            flush=True,
        )


def main() -> None:
    """Prints tables; leaves nothing behind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = [SIDE_BY_SIDE, HEALTHY, *CASES]
    parser.add_argument("--quick", action="store_true", help="each once, Argo at its fastest, none healthy")
    parser.add_argument("--only", nargs="*", choices=parts, metavar="PART", default=parts)
    parser.add_argument("--repeats", type=int, help="of each contestant side by side (5, or 1 if quick)")
    parser.add_argument("--healthy", type=int, default=4, help="healthy canaries of each contestant")
    parser.add_argument("--rate", type=float, default=200, help="of the players, requests a second")
    arguments = parser.parse_args()
    only: list[str] = arguments.only
    with ExitStack() as stack:
        cluster = Kubectl()
        remove = ("delete", "namespace", NAMESPACE, "--ignore-not-found")
        cluster(*remove, "--wait")
        objects.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        stack.callback(cluster, *remove, "--wait=false")
        secret = json.loads(Kubectl(bucket.NAMESPACE)("get", "secret", "s3-credentials", "-o", "json"))
        objects.apply({**secret, "metadata": {"name": "s3-credentials"}})
        client = stack.enter_context(bucket.reached())
        stack.callback(bucket.empty, client, deployment.BUCKET, NAMESPACE)
        store = Store(client, count(100))
        if {SIDE_BY_SIDE, HEALTHY} & {*only}:
            prometheus = stack.enter_context(installed(NAMESPACE, IMAGE))
            if SIDE_BY_SIDE in only:
                repeats = arguments.repeats or (1 if arguments.quick else 5)
                side_by_side(store, prometheus, repeats, arguments.quick)
            if HEALTHY in only and not arguments.quick:
                healthy(store, prometheus, arguments.healthy)
        if names := [name for name in CASES if name in only]:
            ways_to_be_bad(store, names, arguments.rate)


if __name__ == "__main__":
    main()
