"""What the server remembers of running episodes: arm, policy, steps, a recurrent policy's memory. Bounded."""

from ratchet_inference.recent import Recent
from ratchet_inference.seams import Floats


class Session:
    """One running episode.

    Attributes:
        arm: that its first step was given to; empty while there is no canary.
        salt: of the rollout in which that was.
        digest: of the policy that answers it on this server; empty before.
        t: steps so far.
        state: of a recurrent policy with that digest, None at the start.

    """

    __slots__ = ("arm", "digest", "salt", "state", "t", "used")

    def __init__(self, now: float) -> None:
        self.arm = self.salt = ""
        self.digest = ""
        self.t = 0
        self.state: Floats | None = None
        self.used = now


class Sessions:
    """Running episodes, those that waited longest first.

    Args:
        most: episodes at once; one more, and the one that waited longest is forgotten.
        seconds: without a step, after which an episode is forgotten.

    Attributes:
        released: digest of the policy that no episode may have back, also none that names it.

    """

    def __init__(self, most: int = 65_536, seconds: float = 900.0) -> None:
        self._seconds = seconds
        self._episodes: Recent[Session] = Recent(most)
        self.released = ""

    def __len__(self) -> int:
        return len(self._episodes)

    def of(self, episode: str, now: float) -> Session:
        """The episode's session, a new one where it is not known."""
        episodes, seconds = self._episodes, self._seconds
        session = episodes.use(episode)
        if session is not None and now - session.used <= seconds:
            session.used = now
            return session
        session = Session(now)
        episodes.put(episode, session)
        # Two at most leave for each that comes, so none pays for many.
        for _ in episodes.past(lambda one: now - one.used > seconds, 2, near=episode):
            pass
        return session

    def forget(self, episode: str) -> None:
        """The episode is over."""
        self._episodes.pop(episode)

    def release(self, digest: str) -> None:
        """Lets every episode go on with whatever policy is current, those that name `digest` too."""
        self.released = digest
        for session in self._episodes.values():
            session.digest = ""
            session.state = None
