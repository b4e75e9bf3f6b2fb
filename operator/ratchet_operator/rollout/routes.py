"""From a split to the route that each arm's servers must have. Addresses are those of immutable Services."""

from collections.abc import Callable, Collection, Mapping

from ratchet.api.v1alpha1.serverstats import Route
from ratchet_operator.rollout.revision import Revision
from ratchet_operator.rollout.values import Rollout, Split


def serving_arm(state: Rollout, split: Split) -> str | None:
    """The arm that the Service `<name>` selects: stable's, from the bake on the trial's.

    Where a rollback waits for a pod of stable's, and where the first policy of all is replaced before it was
    ever stable, clients stay where somebody answers.
    """
    trial = state.trial
    if trial is None:
        return state.stable
    if state.stable is None:
        return trial.digest if trial.digest in split.weights else next(iter(split.weights), trial.digest)
    return trial.digest if trial.phase in ("Bake", "RollBack") and trial.weight >= 100 else state.stable


def beside(state: Rollout, split: Split) -> tuple[str, int] | None:
    """The arm that has a share of the new episodes beside the one that serves, and its percent."""
    serving = serving_arm(state, split)
    shares = ((arm, weight) for arm, weight in split.weights.items() if arm != serving)
    return next(shares, None) if state.stable is not None else None


def routes_of(
    state: Rollout,
    split: Split,
    arms: Collection[str],
    revisions: Mapping[str, Revision],
    url: Callable[[str], str],
    *,
    by_gateway: bool = False,
) -> dict[str, Route]:
    """By arm, without a generation.

    Args:
        state: of the machine.
        split: to be told.
        arms: revisions that have, or are about to have, servers.
        revisions: what each of them is.
        url: of an arm's Service.
        by_gateway: whether requests come to the trial's servers too, by a share of its own.

    """
    serving, trial = serving_arm(state, split), state.trial
    share = split.weights.get(trial.digest, 0) if trial is not None else 0
    routes: dict[str, Route] = {}
    for arm in arms:
        if arm == serving:
            other = state.stable if trial is not None and arm == trial.digest else trial and trial.digest
            routes[arm] = _to(other, split, revisions, url, _salt(state))
            if by_gateway and 0 < share < 100:
                routes[arm] = routes[arm].model_copy(update={"gateway": "Stable"})
        elif trial is not None and arm == trial.digest and trial.phase != "RollBack":
            routes[arm] = _back(serving, share, revisions, url, _salt(state)) if by_gateway else Route()
        elif serving is not None and serving in split.weights:
            # Whoever still has a connection here is served by the arm that serves everybody else.
            routes[arm] = Route(
                canary=url(serving), weight=1.0, salt=_salt(state), digest=_policy(revisions, serving)
            )
        else:
            routes[arm] = Route()
    return routes


def say_same(one: Route, other: Route) -> bool:
    """Whether two routes send the same requests to the same place, whatever their generation. What a server
    says of its own beside the route does not count.
    """
    return all(
        getattr(one, name) == getattr(other, name) for name in Route.model_fields if name != "generation"
    )


def _to(
    other: str | None,
    split: Split,
    revisions: Mapping[str, Revision],
    url: Callable[[str], str],
    salt: str,
) -> Route:
    """Of the arm that serves: a share to the other one, and the episodes that began there."""
    policy = _policy(revisions, other)
    if other is None or policy is None or other in split.evicted:
        return Route()
    copied = split.mirrored[1] / 100 if split.mirrored is not None and split.mirrored[0] == other else 0.0
    share = split.weights.get(other, 0) / 100
    return Route(canary=url(other), weight=share, salt=salt, digest=policy, mirror=copied)


def _back(
    serving: str | None,
    share: int,
    revisions: Mapping[str, Revision],
    url: Callable[[str], str],
    salt: str,
) -> Route:
    """Of a trial to which a gateway sends a share: the episodes that are not its own."""
    policy = _policy(revisions, serving)
    if serving is None or policy is None or not share:
        return Route()
    if share >= 100:  # whoever names the old policy ends there
        return Route(canary=url(serving), salt=salt, digest=policy)
    return Route(canary=url(serving), weight=share / 100, salt=salt, digest=policy, gateway="Canary")


def _policy(revisions: Mapping[str, Revision], arm: str | None) -> str | None:
    revision = revisions.get(arm or "")
    return revision.policy if revision is not None else None


def _salt(state: Rollout) -> str:
    """The same for a whole trial."""
    trial = state.trial
    return f"{trial.digest}-{state.attempts.get(trial.digest, 0)}" if trial is not None else ""
