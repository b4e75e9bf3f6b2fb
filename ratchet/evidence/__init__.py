"""Anytime-valid evidence: tests that may be looked at every second and stay as wrong as they say.

Pure functions and values on numpy; no clock, no I/O. docs/judge.md says what each number means.
"""

from ratchet.evidence.cohorts import Cohort, Episodes, OpenCohorts
from ratchet.evidence.drift import Drift, Reference, Shift
from ratchet.evidence.guards import (
    DriftGuard,
    LatencyAgainstStable,
    LatencyLimit,
    RateAgainstStable,
    RateLimit,
    ReturnGuard,
    Returns,
    ShiftGuard,
    TripWire,
)
from ratchet.evidence.latency import LatencyRatio
from ratchet.evidence.means import LEAST_EPISODES, Contrast, Moments
from ratchet.evidence.rates import Count, Rate, RateRatio
from ratchet.evidence.verdicts import Decision, Verdict, dump, load, moot, source_down, split

__all__ = [
    "LEAST_EPISODES",
    "Cohort",
    "Contrast",
    "Count",
    "Decision",
    "Drift",
    "DriftGuard",
    "Episodes",
    "LatencyAgainstStable",
    "LatencyLimit",
    "LatencyRatio",
    "Moments",
    "OpenCohorts",
    "Rate",
    "RateAgainstStable",
    "RateLimit",
    "RateRatio",
    "Reference",
    "ReturnGuard",
    "Returns",
    "Shift",
    "ShiftGuard",
    "TripWire",
    "Verdict",
    "dump",
    "load",
    "moot",
    "source_down",
    "split",
]
