"""What one decision and one reward are. Plain tuples: a server makes one for each answer it gives."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

# Numbers in any nesting, or an array; stored flattened in C order.
Numbers = NDArray[Any] | Sequence[Any] | float | int


class Decision(NamedTuple):
    """One answer of a policy server.

    Attributes:
        id: of the request, unique; a client that tries again sends the same one.
        time: Unix seconds.
        digest: of the policy that decided; "" when none did.
        arm: such as `stable` or `canary`.
        episode: as the client named it.
        t: steps of this episode before this one, where the server counts them.
        observation: as the policy was given it, before its normalization.
        mask: true where an action was allowed; None when the request had no mask.
        action: as the environment takes it.
        log_probability: of `action` under the distribution it was drawn from, as computed, never rounded.
        fallback: which step of the fallback chain answered; None for the policy itself.

    """

    id: str
    time: float
    digest: str
    arm: str
    episode: str | None
    t: int | None
    observation: Numbers
    mask: Numbers | None
    action: Numbers
    log_probability: float
    fallback: str | None


class Reward(NamedTuple):
    """What became of one decision (`id`) or of a whole episode (`episode`); exactly one of both is set.

    Attributes:
        time: Unix seconds when it was received, or when the window passed.
        reward: of the decision, or the return of the episode.
        length: steps of the episode, where the client said so.
        default: nobody sent it: the window passed and the server wrote its default.
        late: it came after the window; None where the server did not know the decision.

    """

    time: float
    id: str | None
    episode: str | None
    reward: float
    length: int | None
    default: bool
    late: bool | None
