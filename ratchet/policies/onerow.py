"""What `distributions` does, for a single row in plain Python: without numpy's cost of a call, a row of few
outputs takes a tenth of the time.
"""

from collections.abc import Sequence
from math import cos, exp, log, log1p, pi, sqrt


def categorical(
    logits: Sequence[float], mask: Sequence[bool] | None, temperature: float, uniform: float | None
) -> tuple[int, float]:
    """Index and log-probability; without a uniform number the most likely index."""
    scaled = [x / temperature for x in logits] if temperature != 1.0 else logits
    if mask is None:
        peak = max(scaled)
        weights = [exp(x - peak) for x in scaled]
    else:
        peak = max([x for x, allowed in zip(scaled, mask, strict=True) if allowed])
        weights = [exp(x - peak) if allowed else 0.0 for x, allowed in zip(scaled, mask, strict=True)]
    total = sum(weights)
    if uniform is None:
        index = weights.index(1.0)
    else:
        threshold, reached, index = uniform * total, 0.0, -1
        for i, weight in enumerate(weights):
            if weight:
                # The last with a probability takes what rounding leaves over.
                index = i
                reached += weight
                if reached >= threshold:
                    break
    return index, scaled[index] - peak - log(total)


def bernoulli(
    logits: Sequence[float], mask: Sequence[bool] | None, temperature: float, uniform: Sequence[float] | None
) -> tuple[list[bool], float]:
    """Bits and the log-probability of them all."""
    chosen: list[bool] = []
    log_probability = 0.0
    for i, logit in enumerate(logits):
        if mask is not None and not mask[i]:
            chosen.append(False)
            continue
        x = logit / temperature
        one = x > 0 if uniform is None else uniform[i] <= 1 / (1 + exp(-max(-80.0, min(80.0, x))))
        chosen.append(one)
        against = -x if one else x
        log_probability -= max(against, 0.0) + log1p(exp(-abs(against)))
    return chosen, log_probability


def gaussian(
    mean: Sequence[float], log_std: Sequence[float], temperature: float, uniform: Sequence[float] | None
) -> tuple[list[float], float]:
    """A vector and the logarithm of its density."""
    log_probability = -0.5 * len(mean) * (log(2 * pi) + log(temperature)) - sum(log_std)
    spread = sqrt(temperature)
    chosen: list[float] = []
    for i, center in enumerate(mean):
        noise = 0.0
        if uniform is not None:
            noise = sqrt(-2 * log(uniform[2 * i])) * cos(2 * pi * uniform[2 * i + 1])
        log_probability -= 0.5 * noise * noise
        chosen.append(center + spread * exp(log_std[i]) * noise)
    return chosen, log_probability
