"""The parts that decide: tickets, intake, evaluation, stop rules, rates. No clock, no network."""

import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from fragments import SPACES, evaluation, rollout
from hypothesis import given
from hypothesis import strategies as st
from ratchet_trainer.credit import SHORTEST_DEADLINE, Credit
from ratchet_trainer.evaluating import PendingEvaluation, with_result
from ratchet_trainer.intake import Intake
from ratchet_trainer.rates import Rates
from ratchet_trainer.stopping import progress_of, reason_to_stop

from ratchet.api.v1alpha1.training import Stop
from ratchet.api.v1alpha1.trainingjob import EvaluationResult, Evaluations
from ratchet.experience import CorruptFragment, Fragment, Ticket

LATE = SHORTEST_DEADLINE + 0.1
TIME = datetime(2026, 1, 1, tzinfo=UTC)


def rollouts(credit: Credit, in_hand: int = 0, now: float = 0.0) -> list[Ticket]:
    return credit.rollouts(in_hand, epoch=1, version=0, now=now)


def shards(credit: Credit, episodes: int, now: float = 0.0) -> list[Ticket]:
    return credit.evaluation(episodes, deterministic=True, seed=10, epoch=1, version=3, now=now)


def ids(tickets: list[Ticket]) -> list[int]:
    return [ticket.id for ticket in tickets]


# Credit


def test_in_mode_sync_there_is_one_ticket_for_each_fragment_of_a_batch():
    credit = Credit(fragments_per_batch=3, max_policy_lag=0)

    assert ids(rollouts(credit)) == [1, 2, 3]
    assert rollouts(credit) == []
    credit.answered(2)
    assert rollouts(credit, in_hand=1) == []
    assert ids(rollouts(credit, in_hand=0)) == [4]


def test_in_mode_bounded_async_as_many_batches_are_under_way_as_may_lag():
    credit = Credit(fragments_per_batch=2, max_policy_lag=3)

    assert len(rollouts(credit)) == 2 * (1 + 3)
    for number in (1, 2, 3):
        credit.answered(number)
    assert ids(rollouts(credit, in_hand=1)) == [9, 10]


def test_an_evaluation_takes_no_credit_from_rollouts():
    credit = Credit(fragments_per_batch=2, max_policy_lag=0)
    shards(credit, episodes=4)
    assert len(rollouts(credit)) == 2


def test_an_evaluation_is_split_into_shards_that_play_other_seeds():
    tickets = shards(Credit(fragments_per_batch=3, max_policy_lag=0), episodes=8)

    assert [ticket.episodes for ticket in tickets] == [3, 3, 2]
    assert len({ticket.seed for ticket in tickets}) == 3
    assert all(ticket.kind == "evaluate" and ticket.deterministic for ticket in tickets)


def test_an_evaluation_of_fewer_episodes_than_workers_has_no_empty_shard():
    tickets = shards(Credit(fragments_per_batch=5, max_policy_lag=0), episodes=2)
    assert [ticket.episodes for ticket in tickets] == [1, 1]


def test_while_tickets_wait_in_redis_none_is_overdue():
    credit = Credit(fragments_per_batch=2, max_policy_lag=0)
    rollouts(credit, now=0.0)

    assert credit.any_late(LATE)
    assert credit.overdue(waiting_in_redis=1, now=LATE) == []
    # Only from now on may they have been taken.
    assert not credit.any_late(LATE + 1)
    assert credit.overdue(waiting_in_redis=0, now=LATE + 1) == []
    assert len(credit.overdue(waiting_in_redis=0, now=2 * LATE + 1)) == 2


def test_an_overdue_ticket_is_replaced_under_a_new_id_once():
    credit = Credit(fragments_per_batch=2, max_policy_lag=0)
    first, second = rollouts(credit)
    credit.answered(first.id)

    [(lost, replacement)] = credit.overdue(waiting_in_redis=0, now=LATE)

    assert lost == second
    assert replacement == second.model_copy(update={"id": 3})
    assert credit.overdue(waiting_in_redis=0, now=LATE) == []
    assert rollouts(credit, in_hand=1) == []


def test_the_deadline_grows_with_what_answers_of_the_kind_take():
    credit = Credit(fragments_per_batch=1, max_policy_lag=0)
    rollouts(credit)
    shards(credit, episodes=1)

    for duration in (60.0, 60.0, 600.0):
        credit.took("evaluate", duration)

    assert credit.deadline("evaluate") == 5 * 60.0
    assert credit.deadline("rollout") == SHORTEST_DEADLINE
    [(lost, _)] = credit.overdue(waiting_in_redis=0, now=100.0)
    assert lost.kind == "rollout"


def test_an_evaluation_is_waited_for_longer_until_one_has_been_timed():
    credit = Credit(fragments_per_batch=1, max_policy_lag=0)
    [first] = shards(credit, episodes=1)

    assert credit.overdue(waiting_in_redis=0, now=60.0) == []
    [(lost, _)] = credit.overdue(waiting_in_redis=0, now=60.1)
    assert lost == first

    credit.took("evaluate", 0.1)
    assert credit.deadline("evaluate") == SHORTEST_DEADLINE


def test_after_a_loss_all_is_written_anew_and_no_id_comes_twice():
    credit = Credit(fragments_per_batch=2, max_policy_lag=0)
    before = ids(rollouts(credit))
    credit.forget()
    assert not set(ids(rollouts(credit))) & set(before)
    assert len(before) == 2


# Intake


def offer(intake: Intake, version: int = 3, now: float = 0.0, **header: Any) -> Fragment | None:
    return intake.offer(rollout(**header), version, now)


def test_steps_are_the_sum_of_n_over_what_updates_have_used():
    intake = Intake(max_policy_lag=0)
    for sequence in (1, 2, 3):
        assert offer(intake, sequence=sequence) is not None
    assert (intake.steps, intake.accepted) == (0, 0)

    taken = intake.take_batch(2, version=3)

    assert [fragment.header.sequence for fragment in taken] == [1, 2]
    assert (intake.steps, intake.accepted, intake.episodes) == (12, 2, 2)
    assert intake.mean_return == 2.0
    assert intake.mean_length == 2.0
    assert len(intake.batch) == 1


def test_a_copy_counts_as_duplicate_and_not_as_steps():
    intake = Intake(max_policy_lag=0)
    assert offer(intake, sequence=2) is not None
    assert offer(intake, sequence=2) is None
    assert offer(intake, sequence=1) is None
    assert offer(intake, sequence=1, incarnation="another") is not None
    assert (intake.duplicate, intake.dropped, len(intake.batch)) == (2, 0, 2)


@pytest.mark.parametrize(
    ("lag", "version", "counts"),
    [(0, 3, True), (0, 4, False), (0, 2, False), (2, 5, True), (2, 6, False)],
)
def test_what_is_older_than_the_lag_allows_or_of_no_known_policy_is_dropped(
    lag: int, version: int, counts: bool
):
    """The fragment is of version 3."""
    intake = Intake(max_policy_lag=lag)
    assert (offer(intake, version=version) is not None) == counts
    assert intake.dropped == (not counts)
    assert len(intake.batch) == counts


def test_a_damaged_entry_is_dropped_and_counted():
    intake = Intake(max_policy_lag=0)
    assert intake.offer(CorruptFragment("checksum does not match"), 3, 0.0) is None
    assert (intake.dropped, intake.batch) == (1, [])


def test_an_evaluation_goes_to_the_caller_and_counts_no_steps():
    intake = Intake(max_policy_lag=0)
    fragment = evaluation()
    assert intake.offer(fragment, 9, 0.0) is fragment
    assert (intake.batch, intake.dropped) == ([], 0)


def test_fragments_that_become_too_old_in_hand_are_dropped_and_not_counted_as_steps():
    intake = Intake(max_policy_lag=1)
    for sequence in (1, 2):
        offer(intake, sequence=sequence)

    assert intake.take_batch(2, version=5) == []

    assert (intake.steps, intake.accepted, intake.dropped, len(intake.batch)) == (0, 0, 2, 0)


def test_rates_of_a_pool_are_over_the_last_seconds_and_workers_over_the_last_half_minute():
    intake = Intake(max_policy_lag=0)
    for sequence, now in enumerate((0.0, 20.0, 21.0, 22.0), start=1):
        offer(intake, sequence=sequence, incarnation="old" if now == 0 else "new", now=now)
    offer(intake, worker="fast/0", incarnation="other", now=22.0)

    pools = intake.pools(now=24.25)

    assert pools["pool"].workers == 2
    # Three fragments of 6 steps since 19.75, when the first of them was begun.
    assert pools["pool"].steps_per_second == pytest.approx(18 / 4.5)
    assert pools["pool"].waiting_fraction == pytest.approx(0.5 / 0.75)
    assert pools["fast"].workers == 1
    assert intake.pools(now=40.0)["pool"].workers == 1
    assert intake.pools(now=100.0) == {}


def test_counts_and_marks_go_on_from_a_checkpoint():
    intake = Intake(max_policy_lag=1)
    for sequence in (1, 2, 2):
        offer(intake, sequence=sequence)
    offer(intake, version=9, sequence=3)
    intake.take_batch(1, version=3)

    again = Intake.from_json(1, intake.to_json())

    assert again.to_json() == intake.to_json()
    assert (again.steps, again.accepted, again.duplicate, again.dropped) == (6, 1, 1, 1)
    assert again.batch == []
    # What was in hand has passed the mark: its worker's copy can't come again.
    assert offer(again, sequence=2) is None
    assert offer(again, sequence=4) is not None


sequences = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.integers(0, 3)), max_size=30)


@given(sequences, st.integers(0, 2), st.integers(1, 3))
def test_whatever_arrives_steps_are_six_for_each_accepted_fragment(
    arrivals: list[tuple[str, int, int]], lag: int, per_batch: int
):
    """Every entry ends in exactly one count: accepted, duplicate, dropped or in hand."""
    intake, version = Intake(lag), 0
    for incarnation, sequence, of_version in arrivals:
        fragment = rollout(incarnation=incarnation, sequence=sequence, version=of_version)
        intake.offer(fragment, version, 0.0)
        if intake.take_batch(per_batch, version):
            version += 1
    assert intake.steps == 6 * intake.accepted
    counted = intake.accepted + intake.duplicate + intake.dropped + len(intake.batch)
    assert counted == len(arrivals)


# Evaluation


def answer(ticket: int, version: int = 3, returns: tuple[float, ...] = (2.0,)) -> Fragment:
    fragment = evaluation(ticket=ticket, version=version, sequence=ticket)
    columns = {
        "episode_return": np.array(returns, np.float32),
        "episode_length": np.full(len(returns), 7, np.int32),
    }
    return Fragment(fragment.header, columns)


def pending(*tickets: int) -> PendingEvaluation:
    return PendingEvaluation(version=3, steps=500, tickets=[{ticket} for ticket in tickets])


def test_shards_come_together_over_all_episodes():
    evaluated = pending(1, 2)
    assert evaluated.take(answer(2, returns=(1.0, 3.0))) == {2}
    assert not evaluated.complete
    assert evaluated.take(answer(1, returns=(8.0,))) == {1}
    assert evaluated.complete

    result = evaluated.result(TIME)

    assert (result.steps, result.policy_version, result.episodes) == (500, 3, 3)
    assert result.mean_return == 4.0
    assert result.std_return == round(float(np.std([1.0, 3.0, 8.0])), 3)
    assert result.mean_length == 7.0
    assert result.time == "2026-01-01T00:00:00Z"


def with_actions(ticket: int, taken: list[list[int]]) -> Fragment:
    played = answer(ticket, returns=(1.0,) * len(taken))
    sums = np.array(taken, np.float64)
    lengths = sums.sum(axis=1).astype(np.int32)
    columns = {"episode_length": lengths, "action_sum": sums, "action_squares": sums}
    return Fragment(played.header, {**played.columns, **columns})


def test_actions_of_all_shards_come_together_with_their_differences_between_episodes():
    evaluated = pending(1, 2)
    evaluated.take(with_actions(2, [[9, 1], [5, 15]]))
    evaluated.take(with_actions(1, [[6, 4]]))
    acted = evaluated.acted(SPACES.action, deterministic=True)
    assert acted is not None
    assert (acted.episodes, acted.decisions, acted.deterministic) == (3, 40, True)
    assert acted.counts == (20, 20)
    # Residuals of a share of one half: 9 - 5, 5 - 10, 6 - 5.
    assert acted.error == pytest.approx([math.sqrt((16 + 25 + 1) * 3 / 2) / 40] * 2, rel=1e-5)


@pytest.mark.parametrize("other", [answer(1), with_actions(1, [[1, 2, 3]])], ids=["older worker", "wider"])
def test_actions_of_an_evaluation_are_all_or_none(other: Fragment):
    evaluated = pending(1, 2)
    evaluated.take(with_actions(2, [[9, 1], [5, 15]]))
    evaluated.take(other)
    assert evaluated.acted(SPACES.action, deterministic=True) is None


def test_a_shard_of_another_policy_or_evaluation_is_not_taken():
    evaluated = pending(1)
    assert evaluated.take(answer(1, version=2)) == set()
    assert evaluated.take(answer(9)) == set()
    assert not evaluated.complete


@pytest.mark.parametrize("first", [1, 5, 6])
def test_of_a_shard_asked_for_again_the_first_answer_is_taken_and_no_other(first: int):
    """A worker that is only slow must be able to answer, or it is asked again for ever."""
    evaluated = pending(1, 2)
    old, new = (Ticket(kind="evaluate", id=number, epoch=1, version=3) for number in (1, 5))
    evaluated.replace(old, new)
    evaluated.replace(new, new.model_copy(update={"id": 6}))

    assert evaluated.take(answer(first, returns=(4.0,))) == {1, 5, 6}

    for twin in {1, 5, 6}:
        assert evaluated.take(answer(twin, returns=(9.0,))) == set()
    evaluated.take(answer(2, returns=(4.0,)))
    assert evaluated.result(TIME).episodes == 2
    assert evaluated.result(TIME).mean_return == 4.0


def result(mean_return: float, steps: int) -> EvaluationResult:
    return EvaluationResult(
        steps=steps, policy_version=1, episodes=1, mean_return=mean_return, std_return=0.0, mean_length=1.0,
        time="2026-01-01T00:00:00Z",
    )  # fmt: skip


def test_the_best_evaluation_is_the_newer_of_two_equal_ones():
    evaluations = Evaluations()
    for steps, mean_return in ((1, 5.0), (2, 3.0), (3, 5.0), (4, 4.0)):
        evaluations = with_result(evaluations, result(mean_return, steps))
    assert evaluations.best == result(5.0, 3)
    assert evaluations.latest == result(4.0, 4)


# Stop rules


@pytest.mark.parametrize(
    ("rules", "steps", "active", "evaluated", "reason"),
    [
        ({"target_return": 475}, 10, 0, 475.0, "TargetReturnReached"),
        ({"target_return": 475}, 10, 0, 474.9, None),
        ({"target_return": 475}, 10, 0, None, None),
        ({"target_return": -150}, 10, 0, -149.0, "TargetReturnReached"),
        ({"max_steps": 10}, 9, 0, None, None),
        ({"max_steps": 10}, 10, 0, None, "MaxStepsReached"),
        ({"max_duration": "1m"}, 0, 59.9, None, None),
        ({"max_duration": "1m"}, 0, 60.0, None, "MaxDurationReached"),
        ({"target_return": 1, "max_steps": 1, "max_duration": "1s"}, 1, 1, 1.0, "TargetReturnReached"),
        ({"target_return": 1, "max_steps": 1, "max_duration": "1s"}, 1, 1, 0.0, "MaxStepsReached"),
        ({"target_return": 1, "max_steps": 2, "max_duration": "1s"}, 1, 1, 0.0, "MaxDurationReached"),
        ({"target_return": 1, "max_steps": 2, "max_duration": "2s"}, 1, 1, 0.0, None),
    ],
)
def test_training_ends_by_the_first_rule_that_holds(
    rules: dict[str, Any], steps: int, active: float, evaluated: float | None, reason: str | None
):
    assert reason_to_stop(Stop(**rules), steps, active, evaluated) == reason


def test_progress_goes_from_0_to_1_by_steps():
    stop = Stop(max_steps=200)
    assert [progress_of(stop, steps) for steps in (0, 50, 200, 300)] == [0.0, 0.25, 1.0, 1.0]
    assert progress_of(Stop(target_return=1), 50) == 0.0


# Rates


def test_rates_are_unknown_before_two_updates():
    rates = Rates()
    assert rates.steps_per_second(0.0) is None
    rates.note(0.0, 100)
    assert rates.steps_per_second(1.0) is None
    assert rates.busy(1.0) is None


def test_rates_are_over_the_window_and_not_since_the_beginning():
    rates = Rates()
    rates.note(0.0, 0, busy=0.5)
    for now in range(100, 112):
        rates.note(float(now), (now - 100) * 50, busy=0.25)
    assert rates.steps_per_second(111.0) == 50.0
    assert rates.busy(111.0) == 0.25


def test_rates_fall_once_updates_have_stopped():
    rates = Rates()
    rates.note(0.0, 0)
    rates.note(10.0, 1000, busy=5.0)
    assert rates.steps_per_second(15.0) == 100.0
    assert rates.steps_per_second(100.0) == 10.0
    assert rates.busy(100.0) == 0.05
