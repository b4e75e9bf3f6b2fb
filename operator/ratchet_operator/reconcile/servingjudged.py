"""What the guards say of the trial of a PolicyDeployment, by its servers' counters and its pods."""

from datetime import datetime

from pydantic import ValidationError

from ratchet.api.v1alpha1 import ExitCode
from ratchet.api.v1alpha1.policydeployment import PolicyDeploymentSpec
from ratchet.evidence import Decision, Verdict
from ratchet_operator.build.server import CONTAINER
from ratchet_operator.build.serving import EVIDENCE_ANNOTATION
from ratchet_operator.kinds import REVISION_LABEL, Json, annotations_of, items, labels_of, status_of
from ratchet_operator.policies.failure import terminations
from ratchet_operator.reconcile.servingseen import ServingSeen
from ratchet_operator.rollout.book import Book
from ratchet_operator.rollout.fromspec import court_of
from ratchet_operator.rollout.judging import Evidence, judge

OTHER_SPACES = (
    "It observes or acts in other spaces than the policy that serves: give it a PolicyDeployment of its own."
)


def judged(
    spec: PolicyDeploymentSpec, book: Book, seen: ServingSeen, config_map: Json | None, now: datetime
) -> tuple[Evidence | None, tuple[Decision, ...]]:
    """The guards' verdicts on the present trial, and what is remembered of its traffic."""
    trial = book.state.trial
    if trial is None:
        return None, ()
    name = f"{trial.digest}/{trial.begun}"
    mine = tuple(pod for pod in seen.pods if labels_of(pod).get(REVISION_LABEL) == trial.digest)
    evidence, decisions = judge(
        court_of(spec),
        seen.memo.evidence or _stored(config_map),
        name,
        trial.digest,
        book.state.stable,
        seen.heard.answers,
        _restarts(mine),
        now,
        serves_all=trial.phase == "Bake",
    )
    broken = [end for end in terminations(mine, CONTAINER) if end.exit_code == ExitCode.CONFIG]
    if broken:
        decisions = (Decision("start", Verdict.FAIL, broken[-1].sentence), *decisions)
    stable, canary = (book.revisions.get(arm or "") for arm in (book.state.stable, trial.digest))
    if stable is not None and canary is not None and _differ(stable.spaces, canary.spaces):
        decisions = (Decision("spaces", Verdict.FAIL, OTHER_SPACES), *decisions)
    return evidence, (*decisions, *seen.heard.queries)


def _differ(one: str | None, other: str | None) -> bool:
    return one is not None and other is not None and one != other


def _stored(config_map: Json | None) -> Evidence:
    """The evidence that the ledger has kept; what can't be read is evidence lost, and no more."""
    try:
        return Evidence.model_validate_json(annotations_of(config_map or {}).get(EVIDENCE_ANNOTATION, ""))
    except ValidationError:
        return Evidence()


def _restarts(pods: tuple[Json, ...]) -> int:
    return sum(
        seen.get("restartCount", 0) for pod in pods for seen in items(status_of(pod), "containerStatuses")
    )
