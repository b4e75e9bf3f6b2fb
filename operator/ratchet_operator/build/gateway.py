"""The user's own HTTPRoute: which of its backendRefs are ours, and what a trial's share makes of them. Pure.

Behind each backendRef to Service `<name>` stands, as long as an arm has a share, a copy of it that names the
arm's Service. Nothing is kept of how the route was before: the weights themselves say it. Where `<name>` is
alone in its rule, its weight W becomes W·(100 - percent) and W·percent; where others are beside it, W itself
is divided, so that theirs need not be touched.
"""

import re
from dataclasses import dataclass

from ratchet_operator.build.serving import PORT
from ratchet_operator.conditions import Verdict, no
from ratchet_operator.kinds import Json, items, meta, spec_of, status_of, uid_of

LARGEST_WEIGHT = 1_000_000
_REVISION = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Share:
    """What the gateway sends to an arm's own Service instead of to `<name>`.

    Attributes:
        service: of the arm.
        percent: of what `<name>` has, 1 to 100.

    """

    service: str
    percent: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a look for an HTTPRoute came to.

    Attributes:
        name: that was looked for.
        route: None where there is none.
        why: nobody can say whether there is one.

    """

    name: str
    route: Json | None = None
    why: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Ours:
    """The backendRefs to one PolicyDeployment's Services.

    Attributes:
        service: `<name>`, that clients use.

    """

    namespace: str
    service: str

    def arm(self, revision: str) -> str:
        """The Service of one arm."""
        return f"{self.service}-{revision}"

    def is_own(self, ref: Json) -> bool:
        """Whether it names `<name>`."""
        return self._is_here(ref) and ref.get("name") == self.service

    def is_arm(self, ref: Json) -> bool:
        """Whether it names `<name>-<revision>`."""
        arm = str(ref.get("name", "")).removeprefix(f"{self.service}-")
        return self._is_here(ref) and arm != ref.get("name") and _REVISION.fullmatch(arm) is not None

    def _is_here(self, ref: Json) -> bool:
        is_service = ref.get("kind", "Service") == "Service" and not ref.get("group")
        return is_service and ref.get("namespace", self.namespace) == self.namespace


@dataclass(frozen=True, slots=True)
class _Written:
    """A rule's backendRefs as the user wrote them, and whether `<name>` shares them with somebody."""

    refs: list[Json]
    has_others: bool


def refs_with(refs: list[Json], ours: Ours, share: Share | None) -> list[Json]:
    """A rule's backendRefs, with a share for an arm; without one, as the user wrote them.

    Args:
        refs: as they are, whatever share they have now.
        ours: which of them are to be changed.
        share: to be given.

    """
    written = _written(refs, ours)
    if share is None:
        return written.refs
    found: list[Json] = []
    for ref in written.refs:
        weight = _weight(ref) if ours.is_own(ref) else 0
        if not weight:
            found.append(ref)
            continue
        total = weight if written.has_others else 100 * weight
        theirs = total * share.percent // 100
        found += [{**ref, "weight": total - theirs}, {**ref, "name": share.service, "weight": theirs}]
    return found


def patch_to(route: Json, ours: Ours, share: Share | None) -> tuple[Json, ...]:
    """The JSON patch (RFC 6902) that gives an arm its share, or takes it away; empty where it is so.

    It replaces the backendRefs of rules with one of ours and nothing else, and only while they are as they
    were read, in the same object: rules are one atomic list, which server-side apply could only take whole.
    """
    found: list[Json] = []
    for index, rule in enumerate(items(spec_of(route), "rules")):
        refs = items(rule, "backendRefs")
        wanted = refs_with(refs, ours, share)
        if wanted != refs:
            path = f"/spec/rules/{index}/backendRefs"
            found.append({"op": "test", "path": path, "value": refs})
            found.append({"op": "replace", "path": path, "value": wanted})
    return ({"op": "test", "path": "/metadata/uid", "value": uid_of(route)}, *found) if found else ()


def is_in_force(found: Found, ours: Ours, share: Share | None) -> bool:
    """Whether every Gateway of the route has taken that an arm has this share, and none else."""
    if found.why is not None:
        return False
    if found.route is None:
        return share is None
    newest = meta(found.route).get("generation", 0)
    is_taken = all(one.get("observedGeneration", 0) >= newest for one in _said(found.route))
    has_it = is_taken and not patch_to(found.route, ours, share)
    return has_it and (share is None or obstacle(found, ours) is None)


def obstacle(found: Found, ours: Ours) -> Verdict | None:
    """Why no share can be given, and what to write; None where it can."""
    route, about, service = found.route, f"HTTPRoute {found.name}", f"Service {ours.service}"
    wanted = f"backendRefs: [{{name: {ours.service}, port: {PORT}}}]"
    if found.why is not None:
        return found.why
    if route is None:
        return no("HTTPRouteNotFound", f"There is no {about} in this namespace: write one with {wanted}.")
    has_any = False
    for rule in items(spec_of(route), "rules"):
        written = _written(items(rule, "backendRefs"), ours)
        for weight in (_weight(ref) for ref in written.refs if ours.is_own(ref)):
            has_any |= weight > 0
            if written.has_others and weight % 100:
                words = (
                    "beside others, which percents don't divide: multiply all weights of that rule by 100."
                )
                return no("HTTPRouteIndivisible", f"{about} gives {service} weight {weight} {words}")
            if not written.has_others and weight * 100 > LARGEST_WEIGHT:
                return no("HTTPRouteIndivisible", f"{about} gives {service} alone weight {weight}: write 1.")
    if not has_any:
        return no("HTTPRouteWithoutBackend", f"{about} sends nothing to {service}: write {wanted} in a rule.")
    return _refused(route, about)


def _refused(route: Json, about: str) -> Verdict | None:
    """What its Gateways say against the route; silence about the newest change is no refusal yet."""
    said = _said(route)
    if not any(one.get("type") == "Accepted" for one in said):
        words = f"No Gateway has accepted {about}: write spec.parentRefs that name one."
        return no("HTTPRouteNotAccepted", words)
    for one in said:
        if one.get("type") in ("Accepted", "ResolvedRefs") and one.get("status") != "True":
            words = f"{one.get('type')} is {one.get('status')}, {one.get('reason')}: {one.get('message')}"
            return no("HTTPRouteNotAccepted", f"{about}: {words}")
    return None


def _said(route: Json) -> list[Json]:
    """The conditions of all its Gateways."""
    return [one for parent in items(status_of(route), "parents") for one in items(parent, "conditions")]


def _written(refs: list[Json], ours: Ours) -> _Written:
    """An arm's backendRef that does not follow one of `<name>` is the user's, who wants to see the arm."""
    others = [ref for before, ref in zip([{}, *refs], refs, strict=False) if not _is_copy(before, ref, ours)]
    has_others = any(_weight(ref) for ref in others if not ours.is_own(ref))
    found: list[Json] = []
    for before, ref in zip([{}, *refs], refs, strict=False):
        if not _is_copy(before, ref, ours):
            found.append(ref)
            continue
        total = _weight(before) + _weight(ref)
        found[-1] = {**found[-1], "weight": total if has_others else max(1, total // 100)}
    return _Written(found, has_others)


def _is_copy(before: Json, ref: Json, ours: Ours) -> bool:
    return ours.is_own(before) and ours.is_arm(ref)


def _weight(ref: Json) -> int:
    weight = ref.get("weight", 1)
    return weight if isinstance(weight, int) else 1
