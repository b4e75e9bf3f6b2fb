"""A trial's share of the user's HTTPRoute: only our backendRefs change, and in the end none has."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonpatch import patched
from ratchet_operator.build.gateway import (
    Found,
    Ours,
    Share,
    is_in_force,
    obstacle,
    patch_to,
    refs_with,
)
from ratchet_operator.conditions import unknown

Json = dict[str, Any]
OURS = Ours("lab", "cartpole")
ARM, NEXT = "cartpole-0123abcd", "cartpole-89abcdef"
FIVE = Share(ARM, 5)


def ref(name: str, weight: int = 1, **more: Any) -> Json:
    """As the API server stores it, which writes the defaults out."""
    return {"group": "", "kind": "Service", "name": name, "port": 8080, "weight": weight, **more}


def route(*rules: list[Json], generation: int = 1, said: tuple[Json, ...] | None = None) -> Json:
    taken = ({"type": "Accepted", "status": "True"}, {"type": "ResolvedRefs", "status": "True"})
    conditions = [{"observedGeneration": generation, **one} for one in (taken if said is None else said)]
    return {
        "metadata": {"name": "web", "uid": "u-1", "generation": generation},
        "spec": {"rules": [{"matches": [{"path": {"value": "/"}}], "backendRefs": refs} for refs in rules]},
        "status": {"parents": [{"conditions": conditions}] if conditions else []},
    }


def changed(obj: Json, operations: tuple[Json, ...]) -> Json:
    found = patched(obj, operations)
    assert found is not None
    return found


def weights(refs: list[Json]) -> list[tuple[str, int]]:
    return [(one["name"], one["weight"]) for one in refs]


def test_alone_in_a_rule_the_weights_are_percents() -> None:
    assert weights(refs_with([ref("cartpole")], OURS, FIVE)) == [("cartpole", 95), (ARM, 5)]


def test_the_arm_gets_all_that_is_written_beside_the_name() -> None:
    wanted = ref("cartpole", port=80, filters=[{"type": "RequestHeaderModifier"}])

    _, arm = refs_with([wanted], OURS, FIVE)

    assert arm == {**wanted, "name": ARM, "weight": 5}


def test_what_others_have_stays_theirs() -> None:
    refs = [ref("web", 300), ref("cartpole", 100)]

    assert weights(refs_with(refs, OURS, Share(ARM, 25))) == [("web", 300), ("cartpole", 75), (ARM, 25)]


def test_nothing_is_sent_where_nothing_was() -> None:
    refs = [ref("web"), ref("cartpole", 0)]

    assert refs_with(refs, OURS, FIVE) == refs


@pytest.mark.parametrize(
    "other",
    [
        ref("cartpole-2"),
        ref("cartpole", namespace="elsewhere"),
        {**ref("cartpole"), "kind": "Backend", "group": "gateway.envoyproxy.io"},
        ref(ARM),  # alone: somebody wants to see the arm
    ],
)
def test_what_only_looks_like_ours_is_left_alone(other: Json) -> None:
    assert refs_with([other], OURS, FIVE) == [other]


def test_a_namespace_that_is_the_own_one_may_be_written() -> None:
    assert len(refs_with([ref("cartpole", namespace="lab")], OURS, FIVE)) == 2


NAMES = st.sampled_from(["cartpole", "web", "cartpole-2", ARM])
REFS = st.lists(st.builds(ref, NAMES, st.integers(0, 10) | st.sampled_from([100, 2500, 10_000])), max_size=5)
PERCENTS = st.integers(1, 100)


def divisible(refs: list[Json]) -> bool:
    """That `obstacle` has let through, and in which nobody but the operator has written a copy."""
    found = obstacle(Found("web", route(refs)), OURS)
    follows = [(a["name"], b["name"]) for a, b in pairwise(refs)]
    return found is None and ("cartpole", ARM) not in follows


@given(st.lists(REFS.filter(divisible), min_size=1, max_size=3), PERCENTS, PERCENTS)
def test_at_the_end_it_is_what_the_user_wrote(rules: list[list[Json]], first: int, then: int) -> None:
    before = route(*rules)
    other = Share(NEXT, then)

    one = changed(before, patch_to(before, OURS, Share(ARM, first)))
    two = changed(one, patch_to(one, OURS, other))

    # Another share is what it would be without the one before it, and none is none.
    assert two == changed(before, patch_to(before, OURS, other))
    assert changed(two, patch_to(two, OURS, None)) == before
    assert patch_to(before, OURS, None) == ()
    assert patch_to(two, OURS, other) == ()


@given(REFS.filter(divisible), PERCENTS)
def test_the_share_is_exact_and_nobody_elses_changes(refs: list[Json], percent: int) -> None:
    def part(found: list[Json], *names: str) -> float:
        return sum(one["weight"] for one in found if one["name"] in names) / sum(
            one["weight"] for one in found
        )

    found = refs_with(refs, OURS, Share(NEXT, percent))

    mine = part(refs, "cartpole")
    assert part(found, NEXT) == pytest.approx(mine * percent / 100)
    assert part(found, "cartpole", NEXT) == pytest.approx(mine)
    for name in ("web", "cartpole-2", ARM):
        assert [one for one in found if one["name"] == name] in (
            [one for one in refs if one["name"] == name],
        )


def test_a_patch_is_refused_where_somebody_else_was_faster() -> None:
    read = route([ref("cartpole")])
    operations = patch_to(read, OURS, FIVE)

    assert patched(read, operations) is not None
    assert patched(route([ref("cartpole"), ref("web")]), operations) is None
    assert patched({**read, "metadata": {**read["metadata"], "uid": "u-2"}}, operations) is None


REFUSED = {"type": "ResolvedRefs", "status": "False", "reason": "BackendNotFound", "message": "no port 80"}


@pytest.mark.parametrize(
    ("found", "reason", "says"),
    [
        (Found("web"), "HTTPRouteNotFound", "name: cartpole, port: 8080"),
        (Found("web", route([ref("web")])), "HTTPRouteWithoutBackend", "name: cartpole, port: 8080"),
        (Found("web", route([ref("cartpole", 0)])), "HTTPRouteWithoutBackend", "name: cartpole, port: 8080"),
        (Found("web", route([ref("cartpole", 3), ref("web", 1)])), "HTTPRouteIndivisible", "by 100"),
        (Found("web", route([ref("cartpole", 20_000)])), "HTTPRouteIndivisible", "write 1"),
        (Found("web", route([ref("cartpole")], said=())), "HTTPRouteNotAccepted", "parentRefs"),
        (
            Found("web", route([ref("cartpole")], said=({"type": "Accepted", "status": "True"}, REFUSED))),
            "HTTPRouteNotAccepted",
            "no port 80",
        ),
        (Found("web", why=unknown("Elsewhere", "asked in vain")), "Elsewhere", "asked in vain"),
    ],
)
def test_what_stands_in_the_way_says_what_to_write(found: Found, reason: str, says: str) -> None:
    verdict = obstacle(found, OURS)

    assert verdict is not None
    assert verdict.reason == reason
    assert says in verdict.message
    assert not is_in_force(found, OURS, FIVE)


def test_a_share_stands_in_its_own_way_nowhere() -> None:
    split = changed(before := route([ref("cartpole")]), patch_to(before, OURS, FIVE))

    assert obstacle(Found("web", split), OURS) is None


def test_in_force_is_what_each_gateway_has_taken() -> None:
    before = route([ref("cartpole")])
    split = changed(before, patch_to(before, OURS, FIVE))

    assert is_in_force(Found("web", before), OURS, None)
    assert is_in_force(Found("web", split), OURS, FIVE)
    assert not is_in_force(Found("web", before), OURS, FIVE)
    assert not is_in_force(Found("web", split), OURS, None)
    split["metadata"]["generation"] = 2
    assert not is_in_force(Found("web", split), OURS, FIVE), "its Gateway has not seen it yet"


def test_who_sends_nobody_is_left_once_that_is_known() -> None:
    assert is_in_force(Found("web"), OURS, None)
    assert not is_in_force(Found("web", why=unknown("Elsewhere")), OURS, None)
