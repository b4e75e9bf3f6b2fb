"""Prints how fast one worker process plays: `python rollout_image/measure.py [environment id] [copies]`."""

import sys
import time

import ratchet_rollout.main  # noqa: F401 - before numpy, for it sets numpy's threads  # isort: skip
import numpy as np
from ratchet_rollout.actor import Player
from ratchet_rollout.environments import make

from ratchet.api.v1alpha1.training import Environment
from ratchet.experience import Fragment, Header, decode, encode
from ratchet.policies import Actor, PolicySpec, parameter_shapes

STEPS = 128
SECONDS = 5.0


def main() -> None:
    """Plays fragments of a random policy, encodes and decodes them, and prints the rates."""
    name = sys.argv[1] if len(sys.argv) > 1 else "CartPole-v1"
    copies = int(sys.argv[2]) if len(sys.argv) > 2 else 16
    environments = make(Environment(id=name), copies)
    policy = PolicySpec(observation=environments.spec.observation, action=environments.spec.action)
    rng = np.random.default_rng(0)
    parameters = {
        key: 0.1 * rng.standard_normal(shape, np.float32) for key, shape in parameter_shapes(policy).items()
    }
    actor = Actor(policy, parameters)
    player = Player(environments, STEPS, np.random.SeedSequence(0))
    player.play(actor)

    played = encoded = decoded = 0.0
    fragments = steps = size = 0
    while played < SECONDS:
        begun = time.perf_counter()
        columns = player.play(actor)
        at_played = time.perf_counter()
        n = int(np.count_nonzero(columns["valid"]))
        entry = encode(Fragment(Header("rollout", "pool/0", "x", 1, 1, 1, n, 0.0, 0.0), columns))
        at_encoded = time.perf_counter()
        decode(entry)
        decoded += time.perf_counter() - at_encoded
        encoded += at_encoded - at_played
        played += at_played - begun
        fragments += 1
        steps += n
        size += sum(map(len, entry.values()))
    sys.stdout.write(
        f"{name}, {copies} copies, {environments.autoreset_mode.name}: "
        f"{steps / (played + encoded):,.0f} valid steps/s, "
        f"{steps / (fragments * STEPS * copies):.1%} of steps valid, "
        f"encode {1e6 * encoded / fragments:.0f} us, decode {1e6 * decoded / fragments:.0f} us "
        f"and {size / steps:.0f} bytes a step for {STEPS * copies} steps\n"
    )


if __name__ == "__main__":
    main()
