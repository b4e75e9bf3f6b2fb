"""PolicyDeployment: which arms there are, who gets the traffic, and what its status says.

A step that changes what is remembered writes that alone, the routes with it; the next one does what it says.
So nothing ever follows from a decision that an operator could forget.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import cast, get_args

from pydantic import ValidationError

from ratchet.api.v1alpha1.policydeployment import PolicyDeploymentSpec
from ratchet_operator.build.serving import EVIDENCE_ANNOTATION, ServingContext, rollout_map, routes_in
from ratchet_operator.build.waking import door_name, finds_one_of, leads_to
from ratchet_operator.conditions import Verdict as Answer
from ratchet_operator.conditions import conditions, invalid_spec, no
from ratchet_operator.kinds import (
    AUTOSCALER,
    DEPLOYMENT,
    ENDPOINT_SLICE,
    REVISION_LABEL,
    SERVICE,
    Json,
    annotations_of,
    is_deleting,
    is_owned_by,
    items,
    labels_of,
    spec_of,
    status_of,
    sub,
)
from ratchet_operator.ledger import parse_stamp, stamp
from ratchet_operator.plan import CreateAdminSecret, Plan
from ratchet_operator.reconcile.children import resource_version
from ratchet_operator.reconcile.patching import soft_patch
from ratchet_operator.reconcile.servingchildren import child, children
from ratchet_operator.reconcile.servinggateway import Looked, asked_of, not_looked
from ratchet_operator.reconcile.servinggateway import noted as noted_gateway
from ratchet_operator.reconcile.servingjudged import judged
from ratchet_operator.reconcile.servingseen import ServingSeen
from ratchet_operator.reconcile.servingstatus import Shown, serving_status
from ratchet_operator.reconcile.source import follow, source_of
from ratchet_operator.rollout import machine
from ratchet_operator.rollout.book import Book, read_book
from ratchet_operator.rollout.fromspec import rules_of
from ratchet_operator.rollout.judging import PodAnswer
from ratchet_operator.rollout.remembering import generation_of, remember
from ratchet_operator.rollout.revision import Checkpoint, Revision
from ratchet_operator.rollout.routes import routes_of
from ratchet_operator.rollout.sleeping import quiet_seconds
from ratchet_operator.rollout.values import ArmSeen, Command, Rest, Rollout, Seen, Verb
from ratchet_operator.specs import parsed

LOOK_AGAIN = 1.0  # seconds, while something is on its way
LOOK_FOR_SECRETS = 5.0
COMMAND_ANNOTATION = "ratchet.dev/rollout"
PROGRESS_FIELDS = ("ready", "replicas", "stable", "canary", "decisions")


def reconcile_serving(obj: Json, seen: ServingSeen, now: datetime) -> Plan:
    """One step towards what the spec asks for."""
    if is_deleting(obj):
        return Plan()
    try:
        spec = parsed(PolicyDeploymentSpec, obj)
    except ValidationError as error:
        return _invalid(obj, error, now)
    context = ServingContext.of(obj, spec, seen.installation)
    live = {
        labels_of(one).get(REVISION_LABEL, ""): one
        for one in seen.of(DEPLOYMENT).values()
        if is_owned_by(one, context.uid)
    }
    config_map = seen.config_map
    if config_map is not None and not is_owned_by(config_map, context.uid):
        config_map = None
    has_door = door_name(context.name) in seen.of(ENDPOINT_SLICE)
    book = read_book(config_map, live.values(), _selected(context, seen), stamp(now) if has_door else None)
    if config_map is not None and book.generation and seen.heard.generation != book.generation:
        # Nobody has asked the servers since this was written, or this operator began: there is no reason yet
        # to wait, nor to go on.
        return Plan(memo=seen.memo, requeue_after=LOOK_AGAIN)
    command = command_of(obj)
    sourced = source_of(spec, seen.job, book.accepted)
    is_promoting = (
        command is not None
        and command.verb == "promote"
        and command.id != book.state.command
        and book.state.trial is None
    )
    accepted = follow(spec, book, sourced.checkpoint, is_promoting)
    source = context.revision_of(accepted) if accepted is not None else None
    book = _learned(book, accepted, source, seen.heard.answers)
    source = book.revisions.get(source.name) if source is not None else None

    looked = _looked(obj, book, seen)
    followed = seen.heard.split if looked is None or looked.is_followed else None
    obstacle = looked.obstacle if looked is not None else None
    evidence, decisions = judged(spec, book, seen, config_map, now)
    demand = _demand(context, book, seen)
    look = Seen(
        source=source.name if source is not None else None,
        arms={arm: _arm(book, arm, one, len(seen.ready(arm))) for arm, one in live.items()},
        demand=demand,
        routed=book.routed.split,
        split=followed,
        traffic=seen.heard.traffic if followed is not None else None,
        decisions=decisions,
        command=command,
        obstacle=obstacle.message if obstacle is not None else "",
        rest=_rest(context, book, seen),
    )
    wanted = machine.step(rules_of(spec), book.state, look, now)
    pods = {
        arm: number
        for arm, number in wanted.replicas.items()
        if arm in book.revisions and (number or arm == wanted.state.stable)
    }
    # An arm has its route for as long as it has servers: that it may go is known before it is gone.
    arms = {*pods, *(arm for arm in live if arm in book.revisions)}
    gateway = noted_gateway(obj, book, wanted, followed)
    routes = routes_of(
        wanted.state, wanted.split, arms, book.revisions, context.url, by_gateway=gateway is not None
    )
    # The first policy takes no traffic from another one, so what is no longer asked for is no longer needed.
    peak = demand if spec.autoscaling is not None and book.state.stable is not None else 0
    noted = remember(book, wanted, decisions, {*live, *pods}, source, peak, now)
    noted = noted.model_copy(
        update={
            "generation": generation_of(book, routes_in(config_map), routes, seen.heard.answers),
            "gateway": gateway,
        }
    )
    memo = seen.memo.after(
        evidence,
        decisions,
        annotations_of(config_map or {}).get(EVIDENCE_ANNOTATION),
        noted.state != book.state,
        now,
    )
    ledger = child(context, rollout_map(context, noted, routes, memo.stored), seen.config_map)
    base = Plan(
        secrets=_secrets(context, seen),
        memo=memo,
        requeue_after=LOOK_AGAIN if _is_moving(wanted.state, live, now) else None,
    )
    if ledger.apply is not None:
        version = resource_version(config_map) if config_map is not None else None
        return replace(
            base,
            apply=(replace(ledger.apply, version=version),),
            occurrences=wanted.occurrences,
            requeue_after=0.0,
        )
    steps = children(context, noted, wanted, pods, seen.door, seen.children)
    taken = [one.taken for one in (*steps, ledger) if one.taken is not None]
    shown = Shown(
        noted,
        wanted,
        decisions,
        sourced,
        demand,
        _problem(noted, seen, taken),
        seen.heard.trouble,
        seen.pods,
        seen.heard.rates,
        obstacle,
    )
    patch, due = soft_patch(
        status_of(obj), serving_status(obj, context, shown, now), seen.due_in, PROGRESS_FIELDS
    )
    waits = [base.requeue_after, due, LOOK_FOR_SECRETS if _missing(noted, seen) else None]
    return replace(
        base,
        apply=tuple(one.apply for one in steps if one.apply is not None),
        amend=(looked.amendment,) if looked is not None and looked.amendment is not None else (),
        delete=tuple(one.delete for one in steps if one.delete is not None),
        status=patch,
        requeue_after=min((wait for wait in waits if wait is not None), default=None),
    )


def command_of(obj: Json) -> Command | None:
    """What a person asked for by annotation, `<verb>/<id>`; None for what is no command."""
    text = annotations_of(obj).get(COMMAND_ANNOTATION, "")
    verb, _, id_ = text.partition("/")
    return Command(text, cast(Verb, verb)) if verb in get_args(Verb) and id_ else None


def _selected(context: ServingContext, seen: ServingSeen) -> str | None:
    """The arm that clients are sent to at this moment."""
    live = seen.of(SERVICE).get(context.name)
    if live is None or not is_owned_by(live, context.uid):
        return None
    arm = sub(live, "spec", "selector").get(REVISION_LABEL)
    # One of which nothing is ready may never have served, and must not be taken for stable; it alone sleeps.
    has_served = door_name(context.name) in seen.of(ENDPOINT_SLICE) or seen.ready(arm)
    return arm if has_served else None


def _learned(
    book: Book, accepted: Checkpoint | None, source: Revision | None, answers: tuple[PodAnswer, ...]
) -> Book:
    """The book with the source's revision, and what servers call the policies that they answer with."""
    revisions = dict(book.revisions)
    if source is not None:
        revisions.setdefault(source.name, source)
    for answer in answers:
        revision = revisions.get(answer.arm)
        said = answer.stats
        if revision is not None and revision.policy is None and said is not None and said.current:
            known = {} if said.lineage is None else said.lineage.model_dump(exclude_none=True)
            lineage = revision.checkpoint.lineage.model_copy(update=known)
            checkpoint = revision.checkpoint.model_copy(update={"lineage": lineage})
            learned = {"policy": said.current, "spaces": said.spaces, "checkpoint": checkpoint}
            revisions[answer.arm] = revision.model_copy(update=learned)
    return book.model_copy(update={"accepted": accepted, "revisions": revisions})


def _looked(obj: Json, book: Book, seen: ServingSeen) -> Looked | None:
    """What was found of the HTTPRoute, if that was looked for as it must be now."""
    asked, looked = asked_of(obj, book), seen.heard.gateway
    if asked is None:
        return None
    return looked if looked is not None and looked.asked == asked else not_looked(asked)


def _arm(book: Book, arm: str, live: Json, ready: int) -> ArmSeen:
    """An arm whose policy has no name yet has not been asked, and can't be sent anybody."""
    revision = book.revisions.get(arm)
    is_known = revision is not None and revision.policy is not None
    return ArmSeen(spec_of(live).get("replicas", 1), ready if is_known else 0)


def _rest(context: ServingContext, book: Book, seen: ServingSeen) -> Rest:
    """Who asks stable for anything, and which way."""
    slices = seen.of(ENDPOINT_SLICE)
    hosts = {str(status_of(pod).get("podIP")) for pod in seen.ready(book.state.stable)}
    return Rest(
        quiet=quiet_seconds(seen.heard.answers),
        door=leads_to(slices.get(door_name(context.name)), seen.door),
        shut=seen.door.port is None,
        asked=bool(seen.door.held or seen.door.is_asked),
        found=finds_one_of(slices.values(), context.name, hosts),
    )


def _demand(context: ServingContext, book: Book, seen: ServingSeen) -> int:
    """Pods that the whole traffic needs: the autoscaler's number for what serves, where there is one, which
    does not sink during a trial that takes a part of the traffic.
    """
    spec, stable = context.spec, book.state.stable
    if spec.autoscaling is None:
        return spec.replicas
    scaler = seen.of(AUTOSCALER).get(context.arm_name(stable)) if stable is not None else None
    desired = status_of(scaler).get("desiredReplicas") or 0
    return min(spec.autoscaling.max_replicas, max(spec.replicas, desired, book.peak))


def _is_moving(state: Rollout, live: Mapping[str, Json], now: datetime) -> bool:
    """Whether anything hangs on the clock, or on traffic."""
    cools = parse_stamp(state.cooldown_until or "")
    is_cooling = cools is not None and now < cools
    is_turning = state.nap is not None and state.nap.phase != "Asleep"
    return state.trial is not None or bool(live.keys() - {state.stable}) or is_cooling or is_turning


def _secrets(context: ServingContext, seen: ServingSeen) -> tuple[CreateAdminSecret, ...]:
    if seen.secrets.get(context.admin_name) is not None:
        return ()
    name, labels = context.admin_name, context.labels()
    return (CreateAdminSecret(context.namespace, name, context.uid, labels, context.owner),)


def secrets_of(context: ServingContext, job: Json | None) -> list[str]:
    """The Secrets that pods need: their token, and the credentials of the source's bucket."""
    source = context.spec.source.checkpoint
    reference = (
        sub(spec_of(job), "checkpoint", "s3", "secretRef").get("name")
        if source is None
        else source.s3.secret_ref and source.s3.secret_ref.name
    )
    return [context.admin_name, *([reference] if isinstance(reference, str) else [])]


def _missing(book: Book, seen: ServingSeen) -> str | None:
    """A Secret with an arm's credentials that is not there."""
    names = {revision.checkpoint.secret for revision in book.revisions.values()}
    return next((name for name in sorted(name for name in names if name) if _is_gone(seen, name)), None)


def _is_gone(seen: ServingSeen, secret: str) -> bool:
    return secret in seen.secrets and seen.secrets[secret] is None


def _problem(book: Book, seen: ServingSeen, taken: list[str]) -> Answer | None:
    """What stands in the way and is no pod's doing."""
    if taken:
        name = ", ".join(taken)
        return no("NameTaken", f"{name} exists and belongs to someone else: rename it, or this object.")
    if seen.refused:
        return no("Refused", seen.refused)
    missing = _missing(book, seen)
    return no("SecretNotFound", f"There is no Secret {missing} in this namespace.") if missing else None


def _invalid(obj: Json, error: ValidationError, now: datetime) -> Plan:
    """A spec that the installed CRD let through and this operator can't read: say so, touch nothing."""
    generation = obj["metadata"].get("generation", 0)
    live = status_of(obj)
    before = {one.get("type"): one for one in items(live, "conditions")}
    told = conditions(live.get("conditions"), {"Progressing": invalid_spec(error)}, generation, now)
    others = [one for kind, one in before.items() if kind != "Progressing"]
    patch, _ = soft_patch(live, {**live, "conditions": [*told, *others]}, 0.0, ())
    return Plan(status=patch)
