"""One decision: numpy against torch in float32, bfloat16 and int8, by size of batch and of network.

Usage: python benchmarks/policy_math.py [--repetitions N]

All evaluate the same weights, in one process and on one thread, in turns. Times are of the processor, so
another program on the same cores disturbs them less than wall time; of N repetitions the fastest counts.
The last column is the whole decision with numpy: network, mask, sampling from a seed, log-probability.
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse  # noqa: E402 - libraries read the number of threads when they are imported
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from datetime import UTC, datetime  # noqa: E402
from functools import partial  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

from ratchet.policies import PolicySpec, ServedPolicy, SpaceSpec, parameter_shapes  # noqa: E402
from ratchet.policies.formats import FORMATS  # noqa: E402
from ratchet.policies.networks import NumpyNetwork  # noqa: E402
from ratchet.policies.torchnetwork import TorchNetwork  # noqa: E402

SIZES = {
    "CartPole, 64x64": (4, 2, (64, 64)),
    "512x512": (128, 16, (512, 512)),
    "1024x1024": (256, 16, (1024, 1024)),
    "2048x2048": (256, 16, (2048, 2048)),
}
BATCHES = (1, 4, 16, 64, 256)
AT_LEAST_SECONDS = 0.02


def random_policy(
    observations: int, actions: int, hidden: tuple[int, ...]
) -> tuple[PolicySpec, dict[str, np.ndarray]]:
    spec = PolicySpec(
        observation=SpaceSpec(kind="Box", shape=(observations,), low=-1.0, high=1.0),
        action=SpaceSpec(kind="Discrete", dtype="int64", n=actions),
        hidden=hidden,
    )
    rng = np.random.default_rng(0)
    parameters = {
        name: (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        for name, shape in parameter_shapes(spec).items()
    }
    return spec, parameters


def fastest(work: Callable[[], object], repetitions: int) -> float:
    """Microseconds of one call."""
    work()
    calls, spent = 1, 0.0
    while spent < AT_LEAST_SECONDS:
        calls *= 2
        spent = _seconds(work, calls)
    return min(_seconds(work, calls) for _ in range(repetitions)) / calls * 1e6


def _seconds(work: Callable[[], object], calls: int) -> float:
    begun = time.thread_time()
    for _ in range(calls):
        work()
    return time.thread_time() - begun


def compare_networks(inputs: int, actions: int, hidden: tuple[int, ...], repetitions: int) -> None:
    rng = np.random.default_rng(0)
    spec, parameters = random_policy(inputs, actions, hidden)
    networks = [NumpyNetwork(spec, parameters), *(TorchNetwork(spec, parameters, one) for one in FORMATS)]
    served = ServedPolicy.of("", spec, parameters)
    names = ["torch float32", *FORMATS[1:], "decision"]
    print(f"{'rows':>5} {'numpy':>9} {' '.join(f'{name:>16}' for name in names)} {'a row':>8}")
    for rows in BATCHES:
        seen = rng.standard_normal((rows, inputs)).astype(np.float32)
        base, *others = [fastest(partial(network, seen, None), repetitions) for network in networks]
        decide = partial(
            served.decide,
            seen,
            masks=np.ones((rows, actions), np.bool_),
            deterministic=np.zeros(rows, np.bool_),
            temperature=np.ones(rows, np.float32),
            seeds=list(range(rows)),
        )
        others.append(fastest(decide, repetitions))
        columns = " ".join(f"{spent:9.1f} ({spent / base:4.2f})" for spent in others)
        print(f"{rows:5} {base:9.1f} {columns} {others[-1] / rows:8.2f}")


def compare_choosing(actions: int, repetitions: int) -> None:
    rng = np.random.default_rng(0)
    served = ServedPolicy.of("", *random_policy(4, actions, (8,)))
    for rows in (1, 2, 4, 8, 16, 32):
        outputs = rng.standard_normal((rows, actions)).astype(np.float32)
        asked = (outputs, None, np.zeros(rows, np.bool_), np.ones(rows, np.float32), [None] * rows)
        few, many = (
            fastest(partial(choose, *asked), repetitions)
            for choose in (served._choose_few, served._choose_many)
        )
        taken = "Python" if rows <= served._few else "numpy"
        print(f"{actions:7} {rows:4} {few:8.1f} {many:8.1f} ({few / many:4.2f}) {taken}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repetitions", type=int, default=5)
    repetitions = parser.parse_args().repetitions
    torch.set_num_threads(1)
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    print(f"{now}, numpy {np.__version__}, torch {torch.__version__}, one thread")
    for words, size in SIZES.items():
        print(f"\n{words}: processor time of a call in µs, and its ratio to numpy's")
        compare_networks(*size, repetitions)
    print("\nchoosing alone, in µs, and plain Python's ratio to numpy's; which is taken")
    print("actions rows   Python    numpy")
    for actions in (2, 6, 18, 64):
        compare_choosing(actions, repetitions)


if __name__ == "__main__":
    main()
