"""What network and API server do to the operator changes nothing for a policy that is deployed, replaced and
brought back: same states, same creations.
"""

import asyncio
import json
import time
from collections import Counter
from pathlib import Path

import pytest
from faults import TROUBLES, plan_of
from kubelet import Json
from lives import QUIET, State, difference, eventually, plain
from operators import Chart
from proxy import Proxy
from ratchet_operator.build.serving import config_name
from ratchet_operator.kinds import CONFIG_MAP, EVENT, POD, REVISION_LABEL, SERVING_LABEL, labels_of
from served import children, ledger_of
from stage import Stage, stage
from test_rollout_kills import BY_STAGES, NAME, PATIENCE, Rollout

SHOWN = ("conditions", "stable", "canary", "previous", "trial", "command", "history", "quarantined")


class PolicyLife(Rollout):
    """A PolicyDeployment's life, and what there was of it after each scene."""

    def __init__(self, on: Stage, namespace: str, proxy: Proxy) -> None:
        super().__init__(on, namespace, BY_STAGES)
        self.proxy = proxy
        self.states: list[State] = []
        self.made: Counter[tuple[str, str]] = Counter()

    async def live(self, as_before: "PolicyLife | None" = None) -> None:
        """Without a life to compare with, each scene ends when nothing is written any more; with one, when
        all is as it was there.

        Raises:
            AssertionError: a scene does not end as it should.

        """
        for number, scene in enumerate((self.begin, self.replacement, self.undo)):
            await scene()
            if as_before is None:
                await self.serves(1 + number % 2)
                await eventually("nothing is written any more", self._quiet)
            else:
                await self._becomes(as_before.states[number], scene.__name__)
            self.states.append(await self._state())
        self.made = await self._creations()
        await self.end()

    async def replacement(self) -> None:
        await self.offer(2)

    async def undo(self) -> None:
        command = {"metadata": {"annotations": {"ratchet.dev/rollout": "undo/1"}}}
        await self.on.api.merge(self.path, command)

    async def _becomes(self, wanted: State, scene: str) -> None:
        state: State = {}

        async def same() -> bool:
            nonlocal state
            state = await self._state()
            return state == wanted

        try:
            await eventually(f"{self.namespace} after {scene}", same, deadline=PATIENCE)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{difference(wanted, state)}") from None

    async def _quiet(self) -> bool:
        return time.monotonic() - self.proxy.writes(self.namespace)[-1].at > QUIET

    async def _state(self) -> State:
        """Every object, how many pods each arm has, and the status; arms are called after their policy."""
        api = self.on.api
        pods = Counter(
            f"Pod/{labels_of(pod)[REVISION_LABEL]}"
            for pod in await api.list(POD.path(self.namespace), SERVING_LABEL)
        )
        status = await self.status()
        state: Json = {
            **await children(api, self.namespace),
            **{name: {"count": count} for name, count in pods.items()},
            "status": {key: status.get(key) for key in SHOWN},
        }
        return json.loads(await self._plain(json.dumps(state)))

    async def _creations(self) -> Counter[tuple[str, str]]:
        """How often the operator made each object; Events apart, which may be lost and never come twice."""
        made = self.proxy.creations(self.namespace)
        return Counter(
            {
                (resource, await self._plain(name)): count
                for (resource, name), count in made.items()
                if resource != EVENT.plural
            }
        )

    async def _plain(self, text: str) -> str:
        for revision, digest in (await self._ledger()).get("digests", {}).items():
            text = text.replace(revision, f"policy-{int(digest.removeprefix('sha256:'), 16)}")
        return plain(text, self.namespace)

    async def _ledger(self) -> Json:
        path = CONFIG_MAP.path(self.namespace, config_name(NAME))
        return ledger_of(await self.on.api.request("GET", path) or {})


@pytest.fixture(scope="module")
def untroubled(chart: Chart, tmp_path_factory: pytest.TempPathFactory) -> PolicyLife:
    """A life to which nothing happened."""

    async def lived() -> PolicyLife:
        logs = tmp_path_factory.mktemp("untroubled")
        async with stage(chart, logs) as on, on.proxy() as proxy, on.operator(proxy):
            life = PolicyLife(on, "policy-untroubled", proxy)
            await life.live()
            return life

    return asyncio.run(lived())


def test_a_life_without_trouble_makes_an_arm_for_each_time_that_it_serves(untroubled: PolicyLife):
    arms = {"policy-1": 2, "policy-2": 1}
    each = ("deployments", "services", "poddisruptionbudgets")
    made = {(kind, f"{NAME}-{arm}"): count for kind in each for arm, count in arms.items()}
    once = {("configmaps", config_name(NAME)), ("secrets", f"{NAME}-admin"), ("services", NAME)}
    assert untroubled.made == {**made, **dict.fromkeys(once, 1)}


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_changes_nothing_for_a_policy(
    name: str, untroubled: PolicyLife, chart: Chart, tmp_path: Path
):
    plan = plan_of(name)

    async def troubled() -> tuple[PolicyLife, int]:
        async with stage(chart, tmp_path) as on, on.proxy(plan) as proxy, on.operator(proxy) as operator:
            life = PolicyLife(on, f"policy-trouble-{plan.seed}", proxy)
            await life.live(untroubled)
            assert operator.codes == [], "no trouble of the network ends the operator"
            return life, on.kubelet.servers.refused

    life, refused = asyncio.run(troubled())
    assert plan.unmade == set(), plan.made
    assert life.made == untroubled.made, plan.made
    assert refused == 0
