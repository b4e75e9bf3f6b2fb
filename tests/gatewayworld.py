"""A cluster whose clients come through a gateway, which says a second early that it follows its HTTPRoute."""

import copy
from typing import Any

from ratchet_operator.build.gateway import Found
from ratchet_operator.kinds import HTTP_ROUTE, REVISION_LABEL, Json, items, name_of, spec_of
from ratchet_operator.reconcile.servinggateway import Looked, asked_of
from ratchet_operator.rollout.book import Book
from servingworld import NAME, REQUESTS, ServingWorld

ROUTE = "web"
TRAFFIC: Json = {"gateway": {"httpRouteRef": {"name": ROUTE}}}


def ref(name: str, weight: int = 1) -> Json:
    return {"group": "", "kind": "Service", "name": name, "port": 8080, "weight": weight}


RULES: list[Json] = [
    {"matches": [{"path": {"type": "PathPrefix", "value": "/assets"}}], "backendRefs": [ref("assets")]},
    {"matches": [{"path": {"type": "PathPrefix", "value": "/"}}], "backendRefs": [ref(NAME)]},
]


class GatewayWorld(ServingWorld):
    """Requests are dealt out by the last rule's weights; every second one belongs to an episode."""

    def __init__(self, first: str = "good", **spec: Any) -> None:
        self.programmed: list[Json] = []
        self.is_programming = True
        super().__init__(first, traffic=TRAFFIC, **spec)
        self.write_route(RULES)

    @property
    def route(self) -> Json:
        found = self.get(HTTP_ROUTE, ROUTE)
        assert found is not None
        return found

    @property
    def weights(self) -> dict[str, int]:
        """Of the rule that sends to us, as it is written."""
        return {one["name"]: one["weight"] for one in items(spec_of(self.route)["rules"][-1], "backendRefs")}

    def write_route(self, rules: list[Json]) -> None:
        """As the user does."""
        metadata = {"name": ROUTE}
        live = self.get(HTTP_ROUTE, ROUTE)
        status = {} if live is None else {"status": live["status"]}
        spec = {"rules": copy.deepcopy(rules)}
        self.put({"kind": "HTTPRoute", "metadata": metadata, "spec": spec, **status})
        if self.is_programming:
            self.program()

    def program(self) -> None:
        """Says that the route is taken."""
        for route in self.all(HTTP_ROUTE):
            about = {"status": "True", "observedGeneration": route["metadata"]["generation"]}
            taken = [{"type": "Accepted", **about}, {"type": "ResolvedRefs", **about}]
            route["status"] = {"parents": [{"conditions": taken}]}

    def look(self, book: Book) -> Looked | None:
        asked = asked_of(self.deployment, book)
        if asked is None:
            return None
        return Looked(asked, Found(asked.name, copy.deepcopy(self.get(HTTP_ROUTE, asked.name))))

    def turn(self) -> None:
        super().turn()
        if self.is_programming:
            self.program()

    def ask_for_actions(self) -> None:
        # What the gateway does now is what was written a second ago.
        rules, self.programmed = self.programmed, self._rules()
        ready = self.arms()
        if not rules or not self.is_busy:
            return
        refs = items(rules[-1], "backendRefs")
        total = sum(one["weight"] for one in refs)
        for number in range(REQUESTS):
            lot, name = (number * 7) % REQUESTS * total / REQUESTS, ""
            for one in refs:
                name, lot = one["name"], lot - one["weight"]
                if lot < 0:
                    break
            arm = self.selected() if name == NAME else name.removeprefix(f"{NAME}-")
            if name != NAME and not name.startswith(f"{NAME}-"):
                continue  # somebody else's
            pods = ready.get(arm or "", [])
            if not pods:
                assert name == NAME or self.bereaved, f"the gateway sends to {name}, where nobody is ready"
                self.failed += 0 if self.bereaved else 1
                continue
            self.bereaved = self.bereaved and self.serving is None
            server = self.servers[name_of(pods[number % len(pods)])]
            self.answer(server, number, ready, has_episode=number % 2 == 1)

    def _rules(self) -> list[Json]:
        route = self.get(HTTP_ROUTE, ROUTE)
        return copy.deepcopy(items(spec_of(route), "rules"))

    def delete(self, kind: str, name: str) -> None:
        live = self.objects.get((kind, name))
        if kind == "Deployment" and live is not None and self.operating:
            service = f"{NAME}-{live['metadata']['labels'][REVISION_LABEL]}"
            sent = {one["name"] for rule in self.programmed for one in items(rule, "backendRefs")}
            assert service not in sent, "an arm was scaled down to which the gateway still sends"
        super().delete(kind, name)
