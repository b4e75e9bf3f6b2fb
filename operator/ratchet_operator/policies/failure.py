"""What a trainer's end means: fail the job, count it, or ignore it. First rule that matches decides."""

from dataclasses import dataclass
from typing import Literal

from ratchet.api.v1alpha1 import ExitCode
from ratchet.api.v1alpha1.trainingjob import FailurePolicy, FailureRule, OnExitCodes
from ratchet_operator.kinds import (
    ATTEMPT_LABEL,
    Json,
    is_deleting,
    items,
    labels_of,
    meta,
    name_of,
    status_of,
    sub,
    uid_of,
)

Action = Literal["FailJob", "Ignore", "Count"]

REASONS = {
    ExitCode.CONFIG: "ConfigurationError",
    ExitCode.STORAGE: "StorageError",
    ExitCode.DIVERGED: "Diverged",
    ExitCode.REDIS: "RedisUnreachable",
    ExitCode.FENCED: "Fenced",
    ExitCode.CHECKPOINTS: "CheckpointsUnreadable",
}
DEFAULT_RULES = (
    FailureRule(
        action="FailJob",
        on_exit_codes=OnExitCodes(values=[ExitCode.CONFIG, ExitCode.DIVERGED, ExitCode.CHECKPOINTS]),
    ),
    FailureRule(action="Ignore", on_exit_codes=OnExitCodes(values=[ExitCode.FENCED])),
    FailureRule(action="Ignore", on_reasons=["Evicted", "Preempted", "NodeLost"]),
)
_DISRUPTIONS = {
    "PreemptionByScheduler": "Preempted",
    "DeletionByTaintManager": "NodeLost",
    "DeletionByPodGC": "NodeLost",
    "EvictionByEvictionAPI": "Evicted",
    "TerminationByKubelet": "Evicted",
}
_POD_REASONS = {
    "Evicted": "Evicted",
    "Preempting": "Preempted",
    "Preempted": "Preempted",
    "NodeLost": "NodeLost",
}
_MESSAGE_LIMIT = 512


@dataclass(frozen=True, slots=True)
class Termination:
    """One end of one container, by itself or by force.

    Attributes:
        id: pod UID and number of the run, or what took the pod away: it is judged once however often seen.
        reason: OOMKilled, Evicted, Preempted, NodeLost, or Error.

    """

    id: str
    pod: str
    attempt: int
    reason: str
    exit_code: int | None
    message: str

    @property
    def title(self) -> str:
        """CamelCase name of what went wrong."""
        if self.exit_code is not None and self.reason == "Error":
            return REASONS.get(ExitCode(self.exit_code), "Error") if self.exit_code in _CODES else "Error"
        return self.reason

    @property
    def sentence(self) -> str:
        """What went wrong, in the container's own last words where there are any."""
        if self.message:
            return self.message
        code = f" with exit code {self.exit_code}" if self.exit_code is not None else ""
        return f"{self.pod} ended{code}: {self.reason}."


_CODES = frozenset(int(code) for code in ExitCode)


def terminations(pods: tuple[Json, ...], container: str) -> list[Termination]:
    """Every end of the named container that can still be seen, oldest first. A pod that is being deleted has
    not failed, unless it is by a disruption; an exit code of 0 is no failure.
    """
    found: list[tuple[str, Termination]] = []
    for pod in pods:
        if is_deleting(pod):
            reason = _disruption(pod)
            if reason is not None and status_of(pod).get("phase") not in ("Failed", "Succeeded"):
                end = Termination(f"{uid_of(pod)}/{reason}", name_of(pod), _attempt(pod), reason, None, "")
                found.append((meta(pod)["deletionTimestamp"], end))
            continue
        for run, ended in _ended_runs(pod, container):
            if ended.get("exitCode") == 0:
                continue
            termination = Termination(
                id=f"{uid_of(pod)}/{run}",
                pod=name_of(pod),
                attempt=_attempt(pod),
                reason=_reason(pod, ended),
                exit_code=ended.get("exitCode"),
                message=last_words(ended),
            )
            found.append((ended.get("finishedAt") or meta(pod).get("creationTimestamp", ""), termination))
    return [termination for _, termination in sorted(found, key=lambda pair: (pair[0], pair[1].id))]


def last_words(ended: Json) -> str:
    """The last line of a termination message."""
    lines = [line.strip() for line in (ended.get("message") or "").splitlines() if line.strip()]
    return lines[-1][:_MESSAGE_LIMIT] if lines else ""


def _ended_runs(pod: Json, container: str) -> list[tuple[int, Json]]:
    status = status_of(pod)
    runs: list[tuple[int, Json]] = []
    for seen in items(status, "containerStatuses"):
        if seen.get("name") != container:
            continue
        count = seen.get("restartCount", 0)
        for state, run in (("lastState", count - 1), ("state", count)):
            ended = sub(seen, state).get("terminated")
            if ended is not None:
                runs.append((run, ended))
    if not runs and status.get("phase") == "Failed":
        runs.append((0, {"message": status.get("message", "")}))
    return runs


def _attempt(pod: Json) -> int:
    text = labels_of(pod).get(ATTEMPT_LABEL, "")
    return int(text) if text.isdecimal() else 0


def _reason(pod: Json, ended: Json) -> str:
    if ended.get("reason") == "OOMKilled":
        return "OOMKilled"
    status = status_of(pod)
    if status.get("phase") == "Failed":
        if status.get("reason") in _POD_REASONS:
            return _POD_REASONS[status["reason"]]
        return _disruption(pod) or "Error"
    return "Error"


def _disruption(pod: Json) -> str | None:
    """What took the pod away, where the cluster says so."""
    for condition in items(status_of(pod), "conditions"):
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            return _DISRUPTIONS.get(condition.get("reason", ""))
    return None


def judge(policy: FailurePolicy, termination: Termination) -> Action:
    """The user's rules in their order, then the defaults; what no rule matches counts."""
    for rule in (*policy.rules_, *DEFAULT_RULES):
        if _matches(rule, termination):
            return rule.action
    return "Count"


def _matches(rule: FailureRule, termination: Termination) -> bool:
    if rule.on_reasons is not None:
        return termination.reason in rule.on_reasons
    codes = rule.on_exit_codes
    if codes is None or termination.exit_code is None:
        return False
    return (termination.exit_code in codes.values) == (codes.operator == "In")
