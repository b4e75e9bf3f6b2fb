"""Players of CartPole who ask a policy server for each push, on a schedule that no answer changes.

    python players.py --url http://cartpole:8080 --rate 200

Each player steps its pole at fixed times. An answer that is late delays no request but its own player's next
one, whose latency then counts from when it was due. Every answer is checked, and each second one line of JSON
says what has come so far (`Report`). SIGTERM ends it once what was asked is answered. It needs Gymnasium and
`ratchet.client`: the image of the rollout workers has both.
"""

import argparse
import asyncio
import json
import math
import signal
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import gymnasium

from ratchet.client import AsyncClient
from ratchet.client.contract import Action
from ratchet.client.errors import PolicyError
from ratchet.client.retrying import Budget, Retries

# A player's own request is given up then: what users see as failed. Not `ratchet.client`'s 100 ms, which on a
# machine that is busy with other tests would say nothing of the server.
PATIENCE_SECONDS = 2.0
RETRIES = Retries(attempts=8, first=0.01)
FINER = math.log(1.05)
DETAILS = 8


@dataclass(slots=True)
class OfPolicy:
    """What one policy answered; times in seconds since 1970."""

    answers: int = 0
    first: float = 0.0
    last: float = 0.0
    episodes: int = 0
    returns: float = 0.0


@dataclass(slots=True)
class Report:
    """Everything since the start.

    Attributes:
        requests: sent, each once, whatever it took.
        valid: answered by an action of the space and its mask, with a finite log-probability.
        failed: without an answer after the client's own retries, by error.
        invalid: answers that were none, in words.
        retries: of the client.
        retried: the last of them in words: when, and why.
        lost_rewards: returns that no server took.
        changed: episodes that were answered by a second policy, by the first one; fallbacks aside.
        changes: the last of them in words.
        fallbacks: answers by the step of the server's chain that gave them, with the arm before it.
        policies: by digest, without fallbacks.
        canary: answers on the canary's arm, whoever gave them in the end.
        instead: those of them that it did not give itself.
        latencies: answers by the logarithm of their seconds.

    """

    requests: int = 0
    valid: int = 0
    failed: Counter[str] = field(default_factory=Counter[str])
    invalid: list[str] = field(default_factory=list[str])
    retries: int = 0
    retried: list[str] = field(default_factory=list[str])
    lost_rewards: int = 0
    episodes: int = 0
    changed: Counter[str] = field(default_factory=Counter[str])
    changes: list[str] = field(default_factory=list[str])
    fallbacks: Counter[str] = field(default_factory=Counter[str])
    policies: dict[str, OfPolicy] = field(default_factory=dict[str, OfPolicy])
    canary: OfPolicy = field(default_factory=OfPolicy)
    instead: OfPolicy = field(default_factory=OfPolicy)
    latencies: Counter[int] = field(default_factory=Counter[int])
    slowest: float = 0.0

    def took(self, seconds: float) -> None:
        """Counts an answer's latency."""
        self.latencies[math.ceil(math.log(max(seconds, 1e-6)) / FINER)] += 1
        self.slowest = max(self.slowest, seconds)

    def quantile(self, share: float) -> float:
        """Milliseconds that this share of the answers took at most, 5% too many at most; 0 without any."""
        left = share * self.latencies.total()
        for bucket, count in sorted(self.latencies.items()):
            left -= count
            if left <= 0:
                return min(1e3 * math.exp(bucket * FINER), 1e3 * self.slowest)
        return 0.0

    def line(self, *, ended: bool) -> str:
        """As JSON, without line ends."""
        return json.dumps(
            {
                "time": time.time(),
                "ended": ended,
                "requests": self.requests,
                "valid": self.valid,
                "failed": self.failed.total(),
                "errors": self.failed,
                "invalid": self.invalid,
                "retries": self.retries,
                "retried": self.retried,
                "lostRewards": self.lost_rewards,
                "episodes": self.episodes,
                "changed": self.changed,
                "changes": self.changes,
                "fallbacks": self.fallbacks,
                "policies": {digest: _of_policy(one) for digest, one in self.policies.items()},
                "canary": _of_policy(self.canary),
                "instead": _of_policy(self.instead),
                "milliseconds": {
                    **{f"p{100 * share:g}": round(self.quantile(share), 2) for share in (0.5, 0.9, 0.99)},
                    "max": round(1e3 * self.slowest, 2),
                },
            }
        )


def _of_policy(one: OfPolicy) -> dict[str, Any]:
    mean = round(one.returns / one.episodes, 2) if one.episodes else None
    return {
        "answers": one.answers,
        "first": one.first,
        "last": one.last,
        "episodes": one.episodes,
        "meanReturn": mean,
    }


class Noting(Budget):
    """Notes each attempt that is followed by another one."""

    def __init__(self, report: Report) -> None:
        super().__init__(RETRIES)
        self._report = report

    def pause(self, error: PolicyError, attempt: int, remaining: float, *more: Any) -> float | None:
        """See Budget."""
        pause = super().pause(error, attempt, remaining, *more)
        if pause is not None:
            report, words = self._report, f"{time.time():.3f} {type(error).__name__}: {error}"
            report.retries += 1
            report.retried = [*report.retried, words][-DETAILS:]
        return pause


class PatientClient(AsyncClient):
    """A player's own, whose retries are noted."""

    def __init__(self, url: str, report: Report) -> None:
        super().__init__(url, strict=True, timeout=PATIENCE_SECONDS)
        self._budget = Noting(report)


@dataclass(slots=True)
class Player:
    """One pole, one client, one request at a time.

    Attributes:
        due: when the next request is, by the loop's clock.
        period: seconds between two requests.
        masked: each so many steps only one push is allowed, this or that way; 0 for never.
        rewarded: percent of the episodes whose return is reported.

    """

    name: str
    env: Any
    client: AsyncClient
    report: Report
    due: float
    period: float
    masked: int
    rewarded: int
    ending: asyncio.Event

    async def play(self) -> None:
        """Episode after episode until asked to end."""
        number = 0
        while not self.ending.is_set():
            await self._episode(f"{self.name}-{number}", number)
            number += 1

    async def _episode(self, name: str, number: int) -> None:
        report = self.report
        observation, _ = self.env.reset(seed=zlib.crc32(name.encode()))
        policy, total, steps, over = None, 0.0, 0, False
        while not over:
            mask = None
            if self.masked and (steps + 1) % self.masked == 0:
                allowed = (number + steps) % 2
                mask = [allowed == 0, allowed == 1]
            action = await self._ask(name, observation, mask)
            if self.ending.is_set():
                return
            if action is not None and action.fallback is None:
                if policy is not None and policy != action.digest:
                    report.changed[policy] += 1
                    report.changes = [
                        *report.changes,
                        f"{time.time():.3f} {name} step {steps}: {policy} to {action.digest}",
                    ][-DETAILS:]
                policy = action.digest
            push = 0 if action is None else action.action
            observation, reward, terminated, truncated, _ = self.env.step(push)
            total, steps, over = total + float(reward), steps + 1, terminated or truncated
        report.episodes += 1
        if policy is not None:
            of_policy = report.policies[policy]
            of_policy.episodes += 1
            of_policy.returns += total
        if zlib.crc32(name.encode()) % 100 >= self.rewarded:
            return
        try:
            await self.client.reward(total, episode=name, length=steps)
        except PolicyError:
            report.lost_rewards += 1

    async def _ask(self, episode: str, observation: Any, mask: list[bool] | None) -> Action | None:
        """The answer when it is due; None where there is none of use, or the end is here."""
        loop, report = asyncio.get_running_loop(), self.report
        wait = self.due - loop.time()
        if wait > 0:
            await asyncio.sleep(wait)
        due, self.due = self.due, self.due + self.period
        if self.ending.is_set():
            return None
        report.requests += 1
        try:
            action = await self.client.act(observation, episode=episode, mask=mask)
        except PolicyError as error:
            report.failed[type(error).__name__] += 1
            return None
        report.took(loop.time() - due)
        return action if self._is_valid(action, mask) else None

    def _is_valid(self, action: Action, mask: list[bool] | None) -> bool:
        report, now = self.report, time.time()
        # The client has checked that the rest are finite numbers.
        if action.action not in (0, 1) or (mask is not None and not mask[action.action]):
            report.invalid = [*report.invalid, f"{action.action} under {mask} by {action.digest}"][-DETAILS:]
            return False
        report.valid += 1
        places = [report.canary] if action.arm == "canary" else []
        if action.fallback is None:
            places.append(report.policies.setdefault(action.digest, OfPolicy()))
        else:
            report.fallbacks[f"{action.arm}>{action.fallback}"] += 1
            if places:
                places.append(report.instead)
        for place in places:
            place.answers += 1
            place.first = place.first or now
            place.last = now
        return True


async def play(arguments: argparse.Namespace) -> None:
    """Plays until SIGTERM, and prints the report each second."""
    loop, report, ending = asyncio.get_running_loop(), Report(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    period = arguments.players / arguments.rate
    begin = loop.time() + 0.1
    players = [
        Player(
            f"{int(time.time())}-{i}",
            gymnasium.make("CartPole-v1", max_episode_steps=arguments.steps),
            PatientClient(arguments.url, report),
            report,
            begin + period * i / arguments.players,
            period,
            arguments.masked,
            arguments.rewarded,
            ending,
        )
        for i in range(arguments.players)
    ]
    playing = [asyncio.create_task(player.play()) for player in players]

    def say(*, ended: bool) -> None:
        print(report.line(ended=ended), flush=True)

    while not all(task.done() for task in playing):
        say(ended=False)
        done, _ = await asyncio.wait(playing, timeout=1, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    say(ended=True)


def main() -> None:
    """Reads the flags."""
    parser = argparse.ArgumentParser(description="Plays CartPole through a policy server, and counts.")
    parser.add_argument("--url", required=True, help="of the PolicyDeployment's Service")
    parser.add_argument("--rate", type=float, default=200.0, help="requests each second (%(default)s)")
    parser.add_argument("--players", type=int, default=8, help="poles at once (%(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="at most in an episode (%(default)s)")
    parser.add_argument("--masked", type=int, default=0, help="allow one push only in each so many steps")
    parser.add_argument("--rewarded", type=int, default=100, help="percent of episodes that report a return")
    asyncio.run(play(parser.parse_args()))


if __name__ == "__main__":
    main()
