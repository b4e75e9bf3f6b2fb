"""Anytime-valid evidence: tests that may be looked at every second and stay as wrong as they say.

Pure functions and values on numpy; no clock, no I/O. docs/judge.md says what each number means.
"""

from ratchet.evidence.cohorts import Cohort, Episodes, OpenCohorts
from ratchet.evidence.drift import Drift, Shift
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
from ratchet.evidence.means import Contrast, Moments
from ratchet.evidence.rates import Count, Rate, RateRatio
from ratchet.evidence.verdicts import Decision, Verdict, dump, load, source_down, split

__all__ = [
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
    "ReturnGuard",
    "Returns",
    "Shift",
    "ShiftGuard",
    "TripWire",
    "Verdict",
    "dump",
    "load",
    "source_down",
    "split",
]
