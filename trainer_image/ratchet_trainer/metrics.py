"""Prometheus metrics of one trainer."""

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge

from ratchet.api.v1alpha1 import TrainerStatus

if TYPE_CHECKING:  # importing it would import torch, before anything else could begin
    from ratchet_trainer.algorithms.ppo import Metrics as UpdateMetrics

_GAUGES = {
    "episode_return_mean": "Mean return of the last 100 training episodes",
    "episode_length_mean": "Mean length of the last 100 training episodes, in steps",
    "evaluation_return_mean": "Mean return of the newest evaluation",
    "experience_steps_per_second": "Environment steps accepted per second",
    "learner_busy_ratio": "Fraction of time that the learner spends in updates",
    "policy_lag_versions": "Mean versions behind of the fragments in the last batch",
    "policy_version": "Newest published policy version",
    "policy_entropy": "Entropy of the policy's actions, in nats",
    "approx_kl": "Approximate KL divergence between the policy before and after an update",
    "clip_fraction": "Fraction of probability ratios outside the clip range",
    "policy_loss": "Clipped surrogate loss",
    "value_loss": "Value loss",
    "explained_variance": "Fraction of the returns' variance that the value function explains",
    "gradient_norm": "Norm of the gradient before clipping",
    "learning_rate": "Learning rate of the last update",
    "workers": "Rollout workers heard of within half a minute",
}
_COUNTERS = {
    "steps": "Environment steps accepted by the learner, each counted once",
    "updates": "Updates of the policy",
    "episodes": "Training episodes that ended",
    "fragments_accepted": "Fragments that updates have used",
    "fragments_duplicate": "Fragments that arrived more than once",
    "fragments_dropped": "Fragments refused: damaged, or older than the policy lag allows",
}


class Metrics:
    """All under `ratchet_trainer_`, with the job as labels. A gauge has a series once it is known."""

    def __init__(self, namespace: str, job: str) -> None:
        self.registry = CollectorRegistry()
        labels = {"namespace": namespace, "job_name": job}
        self._labels = labels
        self._gauges = {
            name: Gauge(f"ratchet_trainer_{name}", text, list(labels), registry=self.registry)
            for name, text in _GAUGES.items()
        }
        self._counters = {
            name: Counter(f"ratchet_trainer_{name}", text, list(labels), registry=self.registry).labels(
                **labels
            )
            for name, text in _COUNTERS.items()
        }
        self._counted = dict.fromkeys(_COUNTERS, 0)

    def show(self, status: TrainerStatus, update: "UpdateMetrics | None") -> dict[str, float]:
        """Sets everything; returns the figures that are known, by name, for trackers."""
        progress = status.progress
        latest = status.evaluation.latest
        found: dict[str, float | None] = {
            "episode_return_mean": progress.mean_return,
            "episode_length_mean": progress.mean_length,
            "evaluation_return_mean": latest.mean_return if latest else None,
            "experience_steps_per_second": progress.steps_per_second,
            "learner_busy_ratio": progress.learner_busy,
            "policy_lag_versions": progress.policy_lag,
            "policy_version": progress.policy_version,
            "workers": sum(pool.workers for pool in status.pools.values()),
        }
        if update is not None:
            found |= {
                "policy_entropy": update.entropy,
                "approx_kl": update.approx_kl,
                "clip_fraction": update.clip_fraction,
                "policy_loss": update.policy_loss,
                "value_loss": update.value_loss,
                "explained_variance": update.explained_variance,
                "gradient_norm": update.gradient_norm,
                "learning_rate": update.learning_rate,
            }
        known = {name: float(value) for name, value in found.items() if value is not None}
        for name, value in known.items():
            self._gauges[name].labels(**self._labels).set(value)
        for name in _COUNTERS:
            now = int(getattr(progress, name))
            self._counters[name].inc(max(0, now - self._counted[name]))
            self._counted[name] = now
        return known
