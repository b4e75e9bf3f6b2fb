"""The whole CartPole job on Kubernetes against Stable-Baselines3 alone, on the same cores in one run.

Usage: python benchmarks/cartpole_wall_time.py [--runs N]

Each pair is one seed: the job from `kubectl apply` to `Succeeded`, then Stable-Baselines3 with the
same environment copies, hyperparameters, evaluation and stop rule, from the start of its process.
Stable-Baselines3 runs with one torch thread and with one per core, and the faster counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from ratchet.api.v1alpha1 import RLTrainingJobSpec

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "examples" / "cartpole-ppo.yaml"
Json = dict[str, Any]


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """Run kubectl and return what it printed."""
    return subprocess.run(
        ["kubectl", *arguments], input=stdin, capture_output=True, text=True, check=True
    ).stdout


def ratchet(manifest: Json) -> Json:
    """Run one job; seconds are on this machine's clock, from before apply to the condition being seen."""
    name = manifest["metadata"]["name"]
    kubectl("delete", "rlj", name, "--ignore-not-found", "--wait")
    kubectl("wait", "--for=delete", "pods", "-l", f"ratchet.dev/job={name}", "--timeout=120s")
    begin = time.monotonic()
    kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    watch = subprocess.Popen(
        ["kubectl", "get", "rlj", name, "--watch", "-o", "json", "--output-watch-events"],
        stdout=subprocess.PIPE,
        text=True,
    )
    first_step = None
    decoder, text = json.JSONDecoder(), ""
    if watch.stdout is None:
        raise RuntimeError("no pipe to kubectl")
    try:
        for line in watch.stdout:
            text += line
            try:
                event, end = decoder.raw_decode(text)
            except json.JSONDecodeError:
                continue
            text = text[end:].lstrip()
            status = event["object"].get("status", {})
            steps = status.get("progress", {}).get("steps", 0)
            if steps and first_step is None:
                first_step = time.monotonic() - begin
            ended = {c["type"]: c for c in status.get("conditions", []) if c["status"] == "True"}
            if "Failed" in ended:
                raise SystemExit(f"the job failed: {ended['Failed']}")
            if "Succeeded" in ended:
                wall = time.monotonic() - begin
                result = status["evaluation"]["latest"]
                return {
                    "wall": wall,
                    "first_step": first_step,
                    "steps": steps,
                    "steps_per_second": status["progress"]["stepsPerSecond"],
                    "mean_return": result["meanReturn"],
                }
    finally:
        watch.terminate()
        watch.wait()
    raise SystemExit("kubectl stopped watching before the job ended")


def stable_baselines(spec: Json, seed: int) -> Json:
    """The better of one torch thread and one per core."""
    runs = [
        json.loads(
            subprocess.run(
                [sys.executable, str(HERE / "sb3_cartpole.py"), str(seed), str(threads)],
                input=json.dumps(spec),
                capture_output=True,
                text=True,
                check=True,
            ).stdout.splitlines()[-1]
        )
        for threads in sorted({1, os.cpu_count() or 1})
    ]
    return min(runs, key=lambda run: run["wall"])


def main() -> None:
    """Print a row per seed and the medians with their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    manifest = yaml.safe_load(EXAMPLE.read_text())
    manifest["metadata"]["name"] = "benchmark-cartpole"
    now = datetime.now().astimezone()
    print(f"{now:%Y-%m-%d %H:%M}, {os.cpu_count()} cores, {runs} seeds, medians in the last rows\n")
    print(f"{'':24}{'wall s':>9}{'first step s':>14}{'steps':>10}{'steps/s':>10}{'return':>9}")
    pairs: list[tuple[Json, Json]] = []
    for seed in range(runs):
        manifest["spec"].setdefault("algorithm", {})["seed"] = seed
        spec = RLTrainingJobSpec.model_validate(manifest["spec"]).to_wire()
        pair = ratchet(manifest), stable_baselines(spec, seed)
        pairs.append(pair)
        for label, run in zip((f"Ratchet, seed {seed}", f"SB3 alone, seed {seed}"), pair, strict=True):
            row(label, run)
    kubectl("delete", "rlj", manifest["metadata"]["name"])
    ours, theirs = (
        {key: statistics.median(pair[side][key] for pair in pairs) for key in pairs[0][1]} for side in (0, 1)
    )
    ours["first_step"] = statistics.median(pair[0]["first_step"] for pair in pairs)
    print()
    row("Ratchet, median", ours)
    row("SB3 alone, median", theirs)
    print(f"\nwall time, SB3 / Ratchet:      {theirs['wall'] / ours['wall']:.2f}")
    print(f"steps per second, Ratchet / SB3: {ours['steps_per_second'] / theirs['steps_per_second']:.2f}")


def row(label: str, run: Json) -> None:
    """Print one line of the table."""
    first = f"{run['first_step']:.1f}" if run.get("first_step") else "-"
    print(
        f"{label:24}{run['wall']:9.1f}{first:>14}{run['steps']:10.0f}{run['steps_per_second']:10.0f}"
        f"{run['mean_return']:9.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
