"""What is kept of the verdicts that a step acted on."""

from datetime import UTC, datetime

import pytest
from ratchet_operator.rollout.book import Book
from ratchet_operator.rollout.machine import step
from ratchet_operator.rollout.remembering import RECORDS_KEPT, remember
from ratchet_operator.rollout.values import ArmSeen, GuardPolicy, Rollout, Rules, Seen, Split, Stage, Trial

from ratchet.evidence import Decision, Verdict

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
OLD, NEW = "sha256:old", "sha256:new"
READY = {OLD: ArmSeen(1, 1), NEW: ArmSeen(1, 1)}
PASS = Decision("errorRate", Verdict.PASS, "Few errors.", 0.01, 0.01, 900, 900)
FAIL = Decision("latency", Verdict.FAIL, "It is slow.", 20.0, 2.0, 900, 900)
DOWN = Decision("revenue", Verdict.SOURCE_DOWN, "Prometheus does not answer.")
LITTLE = Decision("actionDrift", Verdict.NOT_ENOUGH_EVIDENCE, "9 answers of 100.", canary_n=9)


def book_of(phase: str, weight: int) -> Book:
    trial = Trial(digest=NEW, phase=phase, since="2026-01-01T10:00:00Z", weight=weight)  # pyright: ignore[reportArgumentType]
    return Book(state=Rollout(stable=OLD, trial=trial))


def kept(
    book: Book, decisions: tuple[Decision, ...], **policies: GuardPolicy
) -> tuple[Book, tuple[str, ...]]:
    """The book after one step, and what its Event says."""
    state = book.state
    weight = state.trial.weight if state.trial else 0
    evicted = frozenset({NEW} if state.trial and state.trial.phase == "RollBack" else ())
    split = Split({arm: share for arm, share in ((OLD, 100 - weight), (NEW, weight)) if share}, None, evicted)
    seen = Seen(source=NEW, arms=READY, routed=split, split=split, traffic={}, decisions=decisions)
    wanted = step(Rules(stages=(Stage(10),), policies=policies), state, seen, NOW)
    after = remember(book, wanted, decisions, READY, None, 1, NOW)
    return after, tuple(event.message for event in wanted.occurrences)


@pytest.mark.parametrize(("phase", "weight"), [("Stage", 10), ("Bake", 100)])
def test_a_stage_that_is_passed_and_a_promotion_leave_every_verdict_and_say_what_was_found(
    phase: str, weight: int
):
    decisions = PASS, DOWN, *((LITTLE,) if phase == "Bake" else ())
    book, said = kept(book_of(phase, weight), decisions, revenue=GuardPolicy(on_source_down="Advance"))

    assert [(one.guard, one.verdict, one.action) for one in book.records] == [
        (one.guard, one.verdict.value, "Advance") for one in decisions
    ]
    assert book.records[0].canary_samples == 900
    assert all(PASS.sentence in words and DOWN.sentence in words for words in said)
    assert said


@pytest.mark.parametrize("phase", ["Stage", "Bake"])
def test_a_rollback_leaves_the_verdicts_that_it_came_from(phase: str):
    weight = 10 if phase == "Stage" else 100
    by_failure, said = kept(book_of(phase, weight), (PASS, FAIL))
    assert [(one.guard, one.action) for one in by_failure.records] == [("latency", "RollBack")]
    assert said == (FAIL.sentence,)

    by_doubt, said = kept(
        book_of(phase, weight), (PASS, DOWN), revenue=GuardPolicy(on_source_down="RollBack")
    )
    assert [(one.guard, one.verdict, one.action) for one in by_doubt.records] == [
        ("revenue", "SourceDown", "RollBack")
    ]
    assert said == (DOWN.sentence,)


def test_what_holds_or_only_waits_leaves_nothing_and_old_records_make_room():
    held, _ = kept(book_of("Stage", 10), (PASS, DOWN))
    assert held.records == ()
    back = book_of("RollBack", 0)
    assert back.state.trial is not None
    ended, _ = kept(back, (PASS, FAIL))
    assert ended.state.trial is None
    assert ended.records == ()

    book = book_of("Stage", 10)
    for _ in range(RECORDS_KEPT + 3):
        book, _ = kept(book.model_copy(update={"state": book_of("Stage", 10).state}), (PASS, FAIL))
    assert len(book.records) == RECORDS_KEPT
