"""Who gets new episodes, and how many pods each arm has: both follow from the state and from what is seen.

They are rules over all arms and not actions of a phase, so what was decided and not written, or was left
behind by an operator that died, comes right at the next step.
"""

from ratchet_operator.rollout.values import At, Rollout, Split, Trial


def split_of(state: Rollout, at: At) -> Split:
    """Who gets new episodes: what the state says, as far as the pods for it are ready at this moment."""
    trial, stable = state.trial, state.stable
    weights = _weights(state, at)
    arms = {stable, trial.digest} if trial is not None else {stable}
    evicted = frozenset(digest for digest in at.seen.arms if digest not in arms)
    mirrored: tuple[str, int] | None = None
    if trial is not None:
        stage = at.stage(trial)
        if trial.phase == "Stage" and stage is not None and stage.mirrored:
            mirrored = trial.digest, stage.weight
        # Episodes of a policy that did nothing wrong may end where they began.
        if trial.phase == "RollBack" and (trial.outcome in ("Failed", "TimedOut") or at.is_late(trial)):
            evicted |= {trial.digest}
    return Split(weights, mirrored, evicted - weights.keys())


def _weights(state: Rollout, at: At) -> dict[str, int]:
    """The state may be older than what is ready: the operator may die before it writes what it decided."""
    seen, trial, stable = at.seen, state.trial, state.stable
    weight = trial.weight if trial is not None else 0
    if trial is not None and stable and seen.ready(stable) and not seen.ready(trial.digest):
        weight = 0
    shares = ((stable, 100 - weight), (trial.digest if trial is not None else None, weight))
    weights = {digest: share for digest, share in shares if digest and share}
    for digest, share in weights.items():
        needed = 1 if digest == stable else at.pods(share)
        if share > seen.routed.weights.get(digest, 0) and seen.ready(digest) < needed:
            return dict(seen.routed.weights)
    return weights


def is_followed(state: Rollout, trial: Trial, at: At) -> bool:
    """Whether the trial's weight is in force, and every pod is observed to follow it."""
    split = split_of(state, at)
    return split.weights.get(trial.digest, 0) == trial.weight and at.seen.follows(split)


def replicas_of(state: Rollout, split: Split, at: At) -> dict[str, int]:
    """Pods of each arm. What has no part any more keeps them until it is seen that nobody is sent there."""
    seen, trial = at.seen, state.trial
    wanted: dict[str, int] = {}
    if state.stable is not None:
        is_asleep = state.nap is not None and state.nap.phase == "Asleep"
        wanted[state.stable] = 0 if is_asleep else at.pods(100)
    if trial is not None and trial.phase != "RollBack":
        stage = at.stage(trial) if state.stable is not None and trial.phase in ("Surge", "Stage") else None
        wanted[trial.digest] = at.pods(max(trial.weight, stage.weight) if stage else 100)
    for digest, arm in seen.arms.items():
        if digest not in wanted:
            is_left = digest not in split.weights and seen.follows(split) and seen.is_idle(digest)
            wanted[digest] = 0 if is_left else arm.replicas
    return wanted
