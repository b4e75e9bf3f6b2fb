"""The children that a PolicyDeployment's ledger asks for, against those that live."""

from collections.abc import Iterator, Mapping

from ratchet_operator.build.server import server_deployment
from ratchet_operator.build.serving import (
    ServingContext,
    autoscaler,
    disruption_budget,
    network_policy,
    service,
)
from ratchet_operator.build.waking import Door, door_slice
from ratchet_operator.drift import stamped
from ratchet_operator.kinds import (
    AUTOSCALER,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    ENDPOINT_SLICE,
    KIND_BY_NAME,
    NETWORK_POLICY,
    POLICY_DEPLOYMENT,
    SERVICE,
    Json,
    Kind,
    name_of,
    spec_of,
)
from ratchet_operator.reconcile.children import ChildStep, removals, step
from ratchet_operator.rollout.book import Book
from ratchet_operator.rollout.routes import serving_arm
from ratchet_operator.rollout.values import Wanted


def children(
    context: ServingContext,
    book: Book,
    wanted: Wanted,
    pods: Mapping[str, int],
    door: Door,
    live: Mapping[Kind, Mapping[str, Json]],
) -> list[ChildStep]:
    """One step for each child that needs one, those of arms that have no part any more included.

    Args:
        context: whose they are.
        book: with what each arm is made of.
        wanted: who serves.
        pods: how many each arm must have at least, 0 for one that sleeps; the rest goes.
        door: where requests are held while no pod is there.
        live: children by kind and name.

    """
    asked = list(_wanted(context, book, wanted, pods, live.get(DEPLOYMENT, {})))
    if wanted.state.nap is not None and door.port is not None:
        asked.append(door_slice(context, door))
    steps = [child(context, obj, live.get(KIND_BY_NAME[obj["kind"]], {}).get(name_of(obj))) for obj in asked]
    named = {(obj["kind"], name_of(obj)) for obj in asked}
    for kind in (DEPLOYMENT, AUTOSCALER, DISRUPTION_BUDGET, SERVICE, NETWORK_POLICY, ENDPOINT_SLICE):
        left = [obj for name, obj in live.get(kind, {}).items() if (kind.kind, name) not in named]
        gone = removals(kind, left, context.uid, "its revision has no part any more")
        steps += [ChildStep(delete=delete) for delete in gone]
    return steps


def child(context: ServingContext, wanted: Json, live: Json | None) -> ChildStep:
    """What one child needs."""
    is_scaled = wanted["kind"] == DEPLOYMENT.kind and context.spec.autoscaling is not None
    obj = stamped(wanted, (("spec", "replicas"),) if is_scaled else ())
    return step(obj, live, context.uid, POLICY_DEPLOYMENT.kind)


def _wanted(
    context: ServingContext,
    book: Book,
    wanted: Wanted,
    pods: Mapping[str, int],
    live: Mapping[str, Json],
) -> Iterator[Json]:
    serving = serving_arm(wanted.state, wanted.split)
    if serving is not None:
        yield service(context, context.name, serving)
    for arm, least in pods.items():
        number = least
        if context.spec.autoscaling is not None:
            # The autoscaler's own number, but for what it would have to raise it to.
            now = spec_of(live.get(context.arm_name(arm))).get("replicas", 0)
            number = max(least, now) if least else 0
            quiet = wanted.state.trial is None and arm == wanted.state.stable
            yield autoscaler(context, arm, context.spec.replicas if quiet else least)
        yield service(context, context.arm_name(arm), arm)
        yield disruption_budget(context, arm)
        yield server_deployment(context, book.revisions[arm], number)
    if context.installation.network_policies:
        yield network_policy(context)
