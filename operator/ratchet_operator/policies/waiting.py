"""What is a pod waiting for? One reason and one sentence, from what kubelet and scheduler say."""

from collections.abc import Iterable

from ratchet_operator.conditions import Verdict, no, yes
from ratchet_operator.kinds import Json, is_deleting, items, meta, spec_of, status_of, sub
from ratchet_operator.policies.failure import last_words

_IMAGE = frozenset({"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"})
_CREATION = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})


def is_ready(pod: Json) -> bool:
    """Whether the pod is Ready and stays."""
    return not is_deleting(pod) and any(
        condition.get("type") == "Ready" and condition.get("status") == "True"
        for condition in items(status_of(pod), "conditions")
    )


def alive(pods: Iterable[Json]) -> list[Json]:
    """Pods that have not ended and are not going."""
    return [
        pod
        for pod in pods
        if not is_deleting(pod) and status_of(pod).get("phase") not in ("Succeeded", "Failed")
    ]


def why_not_ready(what: str, pods: Iterable[Json], gpu: str | None = None) -> Verdict:
    """Why no pod of a component is ready; the most telling pod decides.

    Args:
        what: the component's name for the sentence, such as "trainer".
        pods: the pods of the component.
        gpu: resource name of the device that the pod asks for.

    """
    verdicts = [_why_pod(what, pod, gpu) for pod in alive(pods)]
    if not verdicts:
        return no("PodPending", f"The {what} has no pod yet.")
    return min(verdicts, key=lambda pair: pair[0])[1]


def ready_or_why(what: str, pods: Iterable[Json]) -> Verdict:
    """Whether a pod is ready, or why none is."""
    found = list(pods)
    if any(is_ready(pod) for pod in found):
        return yes("Ready", f"The {what} is ready.")
    return why_not_ready(what, found)


def _why_pod(what: str, pod: Json, gpu: str | None) -> tuple[int, Verdict]:
    status = status_of(pod)
    name = meta(pod).get("name", "")
    for seen in items(status, "containerStatuses"):
        waiting: Json = sub(seen, "state", "waiting")
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        now_ended = sub(seen, "state", "terminated")
        ended: Json = now_ended or sub(seen, "lastState", "terminated")
        if reason in _IMAGE:
            cause = message.partition("ErrImagePull: ")[2] or (
                "" if message.startswith("Back-off") else message
            )
            image = image_of(pod, seen.get("name", ""))
            return 0, no("ImagePullBackOff", _sentence(f"The image {image} can't be pulled", cause))
        if reason in _CREATION:
            return 1, no(reason, _sentence(f"The container of {name} can't be created", message))
        if reason == "CrashLoopBackOff" or (now_ended and ended.get("exitCode") != 0):
            cause = last_words(ended) or f"exit code {ended.get('exitCode')}"
            return 3, no("CrashLoopBackOff", _sentence(f"The {what} crashes again and again", cause))
    for condition in items(status, "conditions"):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            message = condition.get("message", "").partition(" no new claims")[0].partition(" preemption:")[0]
            reason = "InsufficientGPU" if gpu and f"Insufficient {gpu}" in message else "Unschedulable"
            return 2, no(reason, _sentence(f"The {what} finds no node", message))
    return 4, no("PodStarting", f"The {what} is starting.")


def image_of(pod: Json, container: str) -> str:
    """The image that a container of the pod asks for."""
    found = items(spec_of(pod), "containers")
    return next((one.get("image", "") for one in found if one.get("name") == container), "")


def _sentence(what: str, cause: str) -> str:
    return f"{what}: {cause}" if cause else f"{what}."
