"""Ratchet's operator next to KubeRay's, on one simulated control plane in one run.

Usage: python benchmarks/operator_latency.py [--samples N] [--bursts 100,300] [--many 1000] [--alone]
       [--seconds 530]

KWOK plays nodes and pods; both operators run as processes of this machine, with their defaults. Every time is
the API server's own: the audit log says, to the microsecond, when a request was answered. "Create to first
child" is from the answer to the creation of an object to the answer to the first creation by its operator.

With the defaults it ends in under nine minutes on two idle cores; what is not measured by then is left out.
"""

import argparse
import asyncio
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import load_kube_config
from operator_contestants import NAMESPACE, Contestant, SimulatedCluster, contest, cpu_seconds
from ratchet_operator.apiserver import ApiError, ApiServer, Bucket

Json = dict[str, Any]
Figures = dict[str, float]

RESULTS = Path(__file__).parent / "results" / "operator_latency.json"
AT_ONCE = 16
SETTLED_SECONDS = 3.0
QUIET_SECONDS = 60.0
QUIET_RESYNC = 20
PATIENCE = 420.0
ADMIN = "admin"
AUDIT_POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: None
    resources: [{group: coordination.k8s.io}]
  - level: Request  # with the name that the server is to make up, which tells whose pod it is
    users: ["system:serviceaccount:kuberay:kuberay-operator"]
    verbs: [create]
    resources: [{group: "", resources: [pods]}]
  - level: Metadata  # those that the controller manager makes for ours
    verbs: [create]
    resources: [{group: "", resources: [pods]}]
  - level: Metadata
    users: [admin]
    verbs: [create, patch]
    resources: [{group: ratchet.dev}, {group: ray.io}]
  - level: Metadata
    userGroups: ["system:serviceaccounts:ratchet-system", "system:serviceaccounts:kuberay"]
    verbs: [create, update, patch, delete, deletecollection]
  - level: None
"""


@dataclass(frozen=True, slots=True)
class Write:
    """One request that changed something; `at` is when it was answered, in seconds since the epoch."""

    at: float
    user: str
    plural: str
    subresource: str
    name: str
    code: int

    @property
    def creates(self) -> bool:
        return self.code == 201 and not self.subresource and self.plural != "events"


class AuditLog:
    """What the API server wrote down, read as it grows."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._rest = b""
        self.writes: list[Write] = []
        self.last: dict[str, float] = {}
        """When each user wrote last."""

    def read(self) -> list[Write]:
        """Everything so far."""
        known = len(self.writes)
        text = self._rest + self._file.read()
        *lines, self._rest = text.split(b"\n")
        for line in lines:
            entry = json.loads(line)
            code = entry.get("responseStatus", {}).get("code", 0)
            if code >= 400:
                continue
            target = entry.get("objectRef", {})
            asked = entry.get("requestObject", {}).get("metadata", {})
            self.writes.append(
                Write(
                    datetime.fromisoformat(entry["stageTimestamp"]).timestamp(),
                    entry["user"]["username"],
                    target.get("resource", ""),
                    target.get("subresource", ""),
                    target.get("name") or asked.get("generateName", ""),
                    code,
                )
            )
        self.last.update({write.user: write.at for write in self.writes[known:]})
        return self.writes

    def since(self, mark: int, user: str) -> list[Write]:
        """What one user wrote after a mark, which is a number of writes."""
        return [write for write in self.read()[mark:] if write.user == user]


async def until(what: str, holds: Callable[[], Awaitable[bool]], every: float = 0.02) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it did not come in time.

    """
    deadline = time.monotonic() + PATIENCE
    while not await holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {PATIENCE:.0f} s")
        await asyncio.sleep(every)


def quantile(values: Iterable[float], q: float) -> float:
    """By nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


class Bench:
    """One control plane, its audit log and a client."""

    def __init__(self, audit_log: Path, api: ApiServer, control_plane: Mapping[str, int]) -> None:
        self._api = api
        self._log = AuditLog(audit_log)
        self._control_plane = control_plane
        self._begun = time.monotonic()
        self.figures: Json = {}
        """By contestant, as far as they are measured."""

    def phase(self, what: str) -> None:
        """Say when it begins."""
        print(f"{time.monotonic() - self._begun:6.1f} s  {what}", flush=True)

    async def create(self, who: Contestant, name: str) -> None:
        await self._api.request("POST", who.api, body=who.manifest(name))

    async def scale(self, who: Contestant, name: str, count: int) -> str:
        """Ask for so many workers; returns the name of the object that was changed."""
        path, patch = who.replicas(name, count)
        await self._api.request("PATCH", path, body=patch, content_type="application/merge-patch+json")
        return path.rpartition("/")[2]

    def mark(self) -> int:
        return len(self._log.read())

    def children(self, who: Contestant, mark: int) -> list[Write]:
        return [w for w in self._log.since(mark, who.user) if w.creates and w.plural in who.children]

    async def all_children(self, who: Contestant, mark: int, objects: int) -> None:
        async def there() -> bool:
            who.cpu_seconds()  # of one that has ended nothing comes
            found = Counter(write.plural for write in self.children(who, mark))
            return all(found[plural] >= objects * each for plural, each in who.children.items())

        every = 0.02 if objects == 1 else 0.1  # so that looking takes nothing from who is looked at
        await until(f"all children of {objects} objects of {who.name}", there, every)

    async def all_pods(self, who: Contestant, mark: int, objects: int) -> float:
        """Wait until so many objects have their pods; when the last of them was made."""

        def made() -> list[Write]:
            return [write for write in self._log.read()[mark:] if write.creates and write.plural == "pods"]

        async def there() -> bool:
            return len(made()) >= objects * who.pods

        await until(f"all pods of {objects} objects of {who.name}", there, every=0.1)
        return made()[objects * who.pods - 1].at

    async def settled(self, who: Contestant, seconds: float, begun: float = 0.0) -> None:
        """Until the operator, which began then, has written nothing for a while."""

        async def quiet() -> bool:
            self._log.read()
            return time.time() - max(begun, self._log.last.get(who.user, 0.0)) > seconds

        await until(f"silence of {who.name}", quiet)

    async def idle(self, who: Contestant, name: str) -> tuple[float, float]:
        """Milliseconds from the creation of one object to its first and its last child."""
        mark = self.mark()
        await self.create(who, name)
        await self.all_children(who, mark, 1)
        created = next(w.at for w in self._log.since(mark, ADMIN) if w.creates)
        times = [write.at for write in self.children(who, mark)]
        await self.settled(who, 0.25)
        return 1000 * (min(times) - created), 1000 * (max(times) - created)

    async def answer(self, who: Contestant, name: str, count: int) -> float:
        """Milliseconds from a change of replicas to the write that follows from it."""
        mark = self.mark()
        target = await self.scale(who, name, count)

        def following() -> list[Write]:
            return [
                write
                for write in self._log.since(mark, who.user)
                if write.plural == who.changed and not write.subresource and write.name.startswith(f"{name}-")
            ]

        async def answered() -> bool:
            return bool(following())

        await until(f"an answer of {who.name} to a change of {name}", answered)
        asked = next(w.at for w in self._log.since(mark, ADMIN) if w.name == target and not w.creates)
        return 1000 * (following()[0].at - asked)

    async def burst(self, who: Contestant, count: int, steady: list[str]) -> Figures:
        """Many objects at once, and meanwhile changes to objects that were there before."""
        mark, cpu = self.mark(), self._cpu(who)
        begin = time.time()
        names = [f"b{count}-{number:04}" for number in range(count)]
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(name: str) -> None:
            async with gate:
                await self.create(who, name)

        async def changes() -> list[float]:
            answers: list[float] = []
            wanted = count * sum(who.children.values())
            for number, name in enumerate(steady):
                share = (number + 1) / (len(steady) + 1)

                async def far_enough(share: float = share) -> bool:
                    return len(self.children(who, mark)) >= share * wanted

                await until(f"a part of a burst of {who.name}", far_enough, every=0.1)
                answers.append(await self.answer(who, name, 4))
            return answers

        answering = asyncio.create_task(changes())
        await asyncio.gather(*(one(name) for name in names))
        created = time.time()
        await self.all_children(who, mark, count)
        spent = {name: seconds - cpu[name] for name, seconds in self._cpu(who).items()}
        last_pod = await self.all_pods(who, mark, count)
        answers = await answering
        await self.settled(who, SETTLED_SECONDS)
        firsts: dict[str, float] = {}
        known = set(names)
        for write in self.children(who, mark):
            owner = write.name[: len(names[0])]
            if owner in known:
                firsts.setdefault(owner, write.at)
        asked = min(w.at for w in self._log.since(mark, ADMIN) if w.creates)
        written = self._log.since(mark, who.user)
        events = sum(write.plural == "events" for write in written)
        made = len(self.children(who, mark))
        all_children = max(write.at for write in self.children(who, mark)) - asked
        return {
            "created_s": created - begin,
            "last_first_child_s": max(firsts.values()) - asked,
            "all_children_s": all_children,
            "children_per_object": made / count,
            "ms_per_child": 1000 * all_children / made,
            "all_pods_s": last_pod - asked,
            "answer_p50_ms": quantile(answers, 0.5) if answers else math.nan,
            "answer_max_ms": max(answers, default=math.nan),
            "writes_per_object": (len(written) - events) / count,
            "events_per_object": events / count,
            "writes_per_child": (len(written) - events) / made,
            "writes_and_events_per_child": len(written) / made,
            "until_then_all_cpu_ms": 1000 * sum(spent.values()) / count,
            **{f"until_then_{name}_cpu_ms": 1000 * seconds / count for name, seconds in spent.items()},
            "cpu_ms_per_object": 1000 * (who.cpu_seconds() - cpu["operator"]) / count,
            "memory_mb": who.memory() / 1e6,
        }

    def _cpu(self, who: Contestant) -> dict[str, float]:
        """CPU seconds that each process of this machine has used so far, which share its cores."""
        of_others = {name: cpu_seconds(pid) for name, pid in self._control_plane.items()}
        return {"operator": who.cpu_seconds(), "client": cpu_seconds(os.getpid()), **of_others}

    async def clear(self, *contestants: Contestant) -> None:
        """Delete all their objects, and wait until all pods are gone."""

        async def gone() -> bool:
            """A busy API server ends a deletion of many with its request: what is left is asked again."""
            try:
                for who in contestants:
                    if await self._any(who.api):
                        await self._api.request("DELETE", who.api)
                        return False
                return not await self._any(f"/api/v1/namespaces/{NAMESPACE}/pods")
            except ApiError as error:
                if error.status not in (0, 429, 504):
                    raise
                return False

        await until("the end of all objects", gone, every=0.5)
        for who in contestants:
            await self.settled(who, SETTLED_SECONDS)

    async def _any(self, path: str) -> bool:
        return bool((await self._api.request("GET", path, params={"limit": "1"})).get("items"))

    async def ready(self, who: Contestant) -> None:
        """Until one object is answered: the operator leads, and its caches are filled."""
        mark = self.mark()
        await self.create(who, "first")
        await self.all_children(who, mark, 1)
        await self.clear(who)

    async def compare(self, contestants: list[Contestant], samples: int, bursts: list[int]) -> None:
        """Everything that both are asked, in turns. What the last burst made of the last one stays."""
        for who in contestants:
            self.phase(f"{who.name}: a first object")
            await self.ready(who)
            self.figures[who.name] = {}
        first: dict[str, list[float]] = {who.name: [] for who in contestants}
        last: dict[str, list[float]] = {who.name: [] for who in contestants}
        change: dict[str, list[float]] = {who.name: [] for who in contestants}
        self.phase(f"{samples} objects and changes, one by one")
        for number in range(samples):
            for who in contestants:
                one, whole = await self.idle(who, f"idle-{number:04}")
                first[who.name].append(one)
                last[who.name].append(whole)
        for number in range(samples):
            for who in contestants:
                change[who.name].append(await self.answer(who, f"idle-{number:04}", 3))
                await self.settled(who, 0.25)
        for who in contestants:
            self.figures[who.name] |= {
                f"idle_{name}_p{100 * q:.0f}_ms": quantile(values[who.name], q)
                for name, values in (("first_child", first), ("all_children", last), ("change", change))
                for q in (0.5, 0.99)
            }
        self.phase("the end of them")
        await self.clear(*contestants)
        for count in bursts:
            for who in contestants:
                self.phase(f"{who.name}: a burst of {count}")
                steady = [f"steady-{number}" for number in range(5)]
                for name in steady:
                    await self.idle(who, name)
                self.figures[who.name][f"burst_{count}"] = await self.burst(who, count, steady)
                if (count, who) != (bursts[-1], contestants[-1]):
                    self.phase("the end of them")
                    await self.clear(who)

    async def many(self, who: Contestant, count: int) -> Figures:
        """As many more at once as there are then so many; then a fresh process that resyncs, and must not
        write.
        """
        self.phase(f"{who.name}: {count} objects")
        there = len((await self._api.request("GET", who.api))["items"])
        settled = await self.burst(who, count - there, [])
        grown = who.memory()
        self.phase(f"{who.name}: a fresh process")
        who.stop()
        mark, begun = self.mark(), time.time()
        who.start(RATCHET_RESYNC_SECONDS=str(QUIET_RESYNC))
        async with aiohttp.ClientSession() as session:

            async def ready() -> bool:
                try:
                    async with session.get(
                        f"http://127.0.0.1:{who.environment['RATCHET_PORT']}/readyz"
                    ) as said:
                        return said.status == 200
                except aiohttp.ClientError:
                    return False

            await until("a ready operator", ready, every=0.2)
        # A fresh process has every trainer asked before it says of one that it can't be.
        await self.settled(who, QUIET_RESYNC + SETTLED_SECONDS, begun)
        self.phase("a quiet minute")
        started = len(self._log.since(mark, who.user))
        mark, cpu = self.mark(), who.cpu_seconds()
        await asyncio.sleep(QUIET_SECONDS)
        written = self._log.since(mark, who.user)
        for write in written[:20]:
            print(f"           written: {write.plural} {write.name} {write.subresource} {write.code}")
        return {
            "all_children_s": settled["all_children_s"],
            "memory_mb": grown / 1e6,
            "memory_after_restart_mb": who.memory() / 1e6,
            "writes_after_restart": started,
            "writes_in_a_quiet_minute": len(written),
            "cpu_in_a_quiet_minute_ms": 1000 * (who.cpu_seconds() - cpu),
        }


ROWS = {
    "idle_first_child_p50_ms": "idle: create to first child, p50 ms",
    "idle_first_child_p99_ms": "idle: create to first child, p99 ms",
    "idle_all_children_p50_ms": "idle: create to all children, p50 ms",
    "idle_all_children_p99_ms": "idle: create to all children, p99 ms",
    "idle_change_p50_ms": "idle: replicas to new pod or changed ReplicaSet, p50 ms",
    "idle_change_p99_ms": "idle: replicas to new pod or changed ReplicaSet, p99 ms",
}
BURST_ROWS = {
    "created_s": "time of the creations, s",
    "last_first_child_s": "last first child, s",
    "all_children_s": "all children, s",
    "children_per_object": "children per object",
    "ms_per_child": "all children, ms per child",
    "all_pods_s": "all pods, whoever makes them, s",
    "answer_p50_ms": "a change to another object meanwhile, p50 ms",
    "answer_max_ms": "a change to another object meanwhile, worst ms",
    "writes_per_object": "API writes per object, without Events",
    "events_per_object": "Events per object",
    "writes_per_child": "API writes per child, without Events",
    "writes_and_events_per_child": "API writes per child, with Events",
    "until_then_all_cpu_ms": "CPU of all processes per object until all children, ms",
    "until_then_operator_cpu_ms": "  operator",
    "until_then_kube-apiserver_cpu_ms": "  API server",
    "until_then_etcd_cpu_ms": "  etcd",
    "until_then_kube-controller-manager_cpu_ms": "  controller manager",
    "until_then_kube-scheduler_cpu_ms": "  scheduler",
    "until_then_kwok_cpu_ms": "  KWOK",
    "until_then_client_cpu_ms": "  this program",
    "cpu_ms_per_object": "CPU of the operator per object until it is settled, ms",
    "memory_mb": "memory of the operator, MB",
}


def table(figures: Json) -> str:
    """Figures of both, and ours as a part of KubeRay's."""
    names = [name for name in figures if figures[name]]
    if not names:
        return "nothing was measured"
    lines = [f"{'':52}" + "".join(f"{name:>10}" for name in names) + ("   ratio" if len(names) == 2 else "")]

    def row(label: str, values: list[float]) -> None:
        text = f"{label:52}" + "".join(
            f"{value:10.3g}" if value < 100 else f"{value:10.0f}" for value in values
        )
        if len(values) == 2 and values[0]:
            text += f"{values[1] / values[0]:8.2f}"
        lines.append(text)

    for key, label in ROWS.items():
        if all(key in figures[name] for name in names):
            row(label, [figures[name][key] for name in names])
    for burst in (key for key in figures[names[-1]] if key.startswith("burst_")):
        lines.append(f"burst of {burst.removeprefix('burst_')}")
        for key, label in BURST_ROWS.items():
            row(f"  {label}", [figures[name][burst][key] for name in names])
    return "\n".join(lines)


async def measure(
    arguments: argparse.Namespace, cluster: SimulatedCluster, contestants: list[Contestant]
) -> Json:
    """All figures by contestant, as far as there was time for them."""
    configuration = Configuration()
    await load_kube_config(str(cluster.admin_kubeconfig), client_configuration=configuration)
    async with ApiServer(configuration, Bucket(1e6, 1e6, time.monotonic)) as api:
        bench, ours = Bench(cluster.audit_log, api, cluster.pids()), contestants[-1]
        many: Figures = {}
        try:
            async with asyncio.timeout(arguments.seconds):
                bursts = [int(text) for text in arguments.bursts.split(",") if text]
                await bench.compare(contestants, arguments.samples, bursts)
                if arguments.many:
                    many = await bench.many(ours, arguments.many)
        except TimeoutError as error:
            print(f"ends here, for time is over: {error}")
        bench.phase("the end")
        print(table(bench.figures))
        if many:
            bench.figures[ours.name][f"many_{arguments.many}"] = many
            print(f"{ours.name} with {arguments.many} jobs")
            for key, value in many.items():
                print(f"  {key.replace('_', ' '):50}{value:10.4g}")
    return bench.figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=30, help="of each latency when idle")
    parser.add_argument("--bursts", default="100,300", help="sizes, with commas")
    parser.add_argument("--many", type=int, default=1000, help="jobs of the quiet minute; 0 leaves it out")
    parser.add_argument("--alone", action="store_true", help="without KubeRay")
    parser.add_argument("--seconds", type=float, default=530, help="after which it ends, done or not")
    parser.add_argument("--logs", type=Path, help="folder to leave the operators' logs in")
    arguments = parser.parse_args()
    with contest(AUDIT_POLICY, arguments.alone) as (cluster, contestants):
        try:
            figures = asyncio.run(measure(arguments, cluster, contestants))
        finally:
            if arguments.logs:
                for log in (cluster.audit_log, *(who.log for who in contestants)):
                    shutil.copy(log, arguments.logs)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"cores": os.cpu_count(), "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
