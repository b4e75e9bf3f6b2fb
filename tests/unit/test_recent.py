"""Names by last use: what is known of them, which go, and that no table is large."""

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ratchet_inference.recent import EACH, Recent

NAMES = st.sampled_from("abcdef")
STEPS = st.lists(st.tuples(st.sampled_from(["put", "use", "get", "pop", "past"]), NAMES), max_size=60)


@given(steps=STEPS, most=st.integers(1, 5))
def test_few_names_go_in_the_order_of_their_use(steps: list[tuple[str, str]], most: int):
    recent: Recent[int] = Recent(most)
    model: OrderedDict[str, int] = OrderedDict()
    for now, (step, name) in enumerate(steps):
        if step == "put":
            known = name in model
            model[name] = now
            model.move_to_end(name)
            gone = None if known or len(model) <= most else model.popitem(last=False)[1]
            assert recent.put(name, now) == gone
        elif step == "pop":
            assert recent.pop(name) == model.pop(name, None)
        elif step == "past":
            old = [(one, at) for one, at in model.items() if at < now - 9][:2]
            # Only those before the first that is not old: the order is that of use.
            first = next((i for i, at in enumerate(model.values()) if at >= now - 9), len(model))
            old = old[:first]
            limit = now - 9
            assert list(recent.past(lambda at, limit=limit: at < limit, 2)) == old
            for one, _ in old:
                del model[one]
        else:
            if step == "use" and name in model:
                model.move_to_end(name)
            assert getattr(recent, step)(name) == model.get(name)
        assert (len(recent), sorted(recent.values())) == (len(model), sorted(model.values()))


@pytest.fixture(scope="module")
def many() -> Recent[int]:
    recent: Recent[int] = Recent(4 * EACH)
    for number in range(12 * EACH):
        recent.put(str(number), number)
    return recent


def test_as_many_stay_as_may(many: Recent[int]):
    assert len(many) == len(list(many.values())) == 4 * EACH


def test_those_that_stay_are_the_latest_or_nearly(many: Recent[int]):
    assert all(many.get(str(number)) == number for number in range(11 * EACH, 12 * EACH))
    assert min(many.values()) > 6 * EACH


def test_a_near_name_finds_its_own_table_and_all_are_found_in_turn():
    recent: Recent[int] = Recent(4 * EACH)
    for number in range(2 * EACH):
        recent.put(str(number), number)
    near = [value for _, value in recent.past(lambda _: True, 2 * EACH, near="7")]
    assert 7 in near
    assert 0 < len(near) < EACH
    rest = [value for _, value in recent.past(lambda _: True, 2 * EACH)]
    assert sorted(near + rest) == list(range(2 * EACH))
    assert len(recent) == 0
