"""Which answers are remembered, and where: the decision log, and the rewards that may come for them."""

import time
from collections.abc import Callable

from ratchet.decisions.records import Decision
from ratchet_inference.asking import Question


class Recording:
    """Hands each decision on.

    Args:
        log: takes what this server decided, None where there is no decision log.
        await_reward: takes what clients of this server will send rewards for; None to wait for none.

    """

    def __init__(
        self, log: Callable[[Decision], None] | None, await_reward: Callable[[Decision], None] | None
    ) -> None:
        self._log = log
        self._await_reward = await_reward

    def decided(self, question: Question) -> None:
        """An answer, be it the canary's; what another server asked is recorded there, if it is used there."""
        if question.hop:
            return
        for decision in _decisions(question):
            if self._log:
                self._log(decision)
            if self._await_reward:
                self._await_reward(decision)


def _decisions(question: Question) -> list[Decision]:
    assert question.array is not None and question.ids is not None  # noqa: PT018, S101 - it is answered
    now = time.time()
    masks, episodes, steps = question.mask_rows, question.episodes, question.steps
    return [
        Decision(
            question.ids[row],
            now,
            question.digests[row],
            question.arms[row],
            episodes[row] if episodes else None,
            steps[row] if steps else None,
            question.array[row],
            None if masks is None else masks[row],
            question.actions[row],
            question.log_probabilities[row],
            question.fallbacks[row],
        )
        for row in range(len(question.observations))
    ]
