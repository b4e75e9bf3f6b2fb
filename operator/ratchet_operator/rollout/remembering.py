"""From one step of the machine to what must be written down before anything follows from it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ratchet.api.v1alpha1.policydeployment import DecisionRecord
from ratchet.api.v1alpha1.serverstats import Route
from ratchet.evidence import Decision, Verdict
from ratchet_operator.ledger import stamp
from ratchet_operator.rollout.book import Book, Routed
from ratchet_operator.rollout.judging import Evidence, PodAnswer
from ratchet_operator.rollout.revision import Revision
from ratchet_operator.rollout.routes import say_same
from ratchet_operator.rollout.values import Rollout, Wanted

RECORDS_KEPT = 16
EVIDENCE_SECONDS = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Memo:
    """What one step leaves for the next one of the same process. Without it the ledger's is taken.

    Attributes:
        evidence: as of the last step.
        stored: the evidence as it was last given to be written, and when.
        verdicts: that went with it.

    """

    evidence: Evidence | None = None
    stored: str | None = None
    at: datetime | None = None
    verdicts: tuple[tuple[str, str], ...] = ()

    def after(
        self,
        evidence: Evidence | None,
        decisions: Sequence[Decision],
        written: str | None,
        is_turning: bool,
        now: datetime,
    ) -> "Memo":
        """For the next step; the evidence is stored anew where a verdict changed, and now and then.

        Args:
            evidence: as of this step, None where nothing is on trial.
            decisions: that go with it.
            written: the evidence as it is in the ledger. An operator that has just begun lets it stand for a
                while: one that dies at each write would else never come to the next one.
            is_turning: whether the ledger is written anyway.
            now: the time.

        """
        if evidence is None:
            return Memo()
        verdicts = tuple((one.guard, one.verdict.value) for one in decisions)
        if self.at is None and written is not None and not is_turning:
            return Memo(evidence, written, now, verdicts)
        is_old = self.at is None or not timedelta(0) <= now - self.at < EVIDENCE_SECONDS
        if is_old or is_turning or verdicts != self.verdicts:
            return Memo(evidence, evidence.to_annotation(), now, verdicts)
        return Memo(evidence, self.stored, self.at, self.verdicts)


def remember(
    book: Book,
    wanted: Wanted,
    decisions: Sequence[Decision],
    arms: Iterable[str],
    source: Revision | None,
    peak: int,
    now: datetime,
) -> Book:
    """The book with this step in it; what nobody speaks of any more is forgotten."""
    state = wanted.state
    named = {state.stable, state.previous, *arms}
    named |= {state.trial and state.trial.digest, state.pin and state.pin.digest, source and source.name}
    known = {**book.revisions, **({source.name: source} if source is not None else {})}
    revisions = {name: known[name] for name in sorted(name for name in named if name) if name in known}
    spoken = {*revisions, *state.quarantined, *state.attempts, *(past.digest for past in state.history)}
    digests = {**book.digests, **{name: revision.checkpoint.digest for name, revision in known.items()}}
    return book.model_copy(
        update={
            "state": state,
            "revisions": revisions,
            "digests": {name: digests[name] for name in sorted(spoken) if name in digests},
            "routed": Routed.of(wanted.split),
            "peak": peak if state.trial is not None else 0,
            "records": (*book.records, *_acted(book.state, state, decisions, now))[-RECORDS_KEPT:],
        }
    )


def generation_of(
    book: Book,
    written: Mapping[str, Route],
    routes: Mapping[str, Route],
    answers: Iterable[PodAnswer],
) -> int:
    """The generation of these routes: a new one where one says something else than what is written, or than a
    server that has heard of this generation, or of a later one that was forgotten here.

    Args:
        book: with the generation of what is written.
        written: routes by arm, as they are in the cluster.
        routes: as they should be, whatever their generation.
        answers: of the servers.

    """
    newest, changed = book.generation, False
    for arm, route in routes.items():
        changed |= arm in written and not say_same(written[arm], route)
    for answer in answers:
        if answer.stats is None:
            continue
        theirs = answer.stats.route
        newest = max(newest, theirs.generation)
        wanted = routes.get(answer.arm)
        if wanted is not None and theirs.generation >= max(1, book.generation):
            changed |= theirs.generation > book.generation or not say_same(theirs, wanted)
    return newest + 1 if changed or newest == 0 else book.generation


def _acted(
    before: Rollout, after: Rollout, decisions: Sequence[Decision], now: datetime
) -> list[DecisionRecord]:
    """The verdicts that this step acted on."""
    old, new = before.trial, after.trial
    if old is None:
        return []
    if new is not None and new.phase == "RollBack" and old.phase != "RollBack" and new.outcome == "Failed":
        # By a guard's policy a doubt is as good as a failure.
        causes = (one for one in decisions if one.verdict is Verdict.FAIL or one.sentence == new.why)
        return [record(one, "RollBack", now) for one in causes]
    is_passed = new is not None and new.phase == "Stage" and new.stage > old.stage
    is_promoted = new is None and old.phase != "RollBack" and after.stable == old.digest
    return [record(one, "Advance", now) for one in decisions] if is_passed or is_promoted else []


def record(decision: Decision, action: str, now: datetime) -> DecisionRecord:
    """A decision as the status shows it."""
    return DecisionRecord.model_validate(
        {
            "guard": decision.guard,
            "verdict": decision.verdict.value,
            "message": decision.sentence,
            "canary": decision.canary,
            "stable": decision.stable,
            "canarySamples": decision.canary_n,
            "stableSamples": decision.stable_n,
            "estimate": decision.estimate,
            "low": decision.low,
            "high": decision.high,
            "bound": decision.bound,
            "odds": decision.evidence,
            "needed": decision.needed,
            "proven": decision.proven,
            "action": action,
            "time": stamp(now),
        }
    )
