"""Estimates the device time of counted calls on an H200. The estimates are no measurements.

A call takes at least the time of its bytes, and of its instructions where they are known. The range covers
the shares of the bandwidth and of the issue slots that measured kernels reached, by the number of warps where
it is known, and its high end adds a constant for each launch. benchmarks/results/h200_a0aae5b.json has these
figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.gpu_estimate import FIGURES, issue_share
from tools.step_cost.counting import Call
from tools.step_cost.instructions import Issue


@dataclass(frozen=True)
class Estimate:
    """Microseconds of calls.

    Attributes:
        by_bytes: bytes at the bandwidth of a copy.
        by_instructions: warp instructions at the highest issue share measured; 0 if unknown.
        low, high: the estimate.
    """

    by_bytes: float = 0.0
    by_instructions: float = 0.0
    low: float = 0.0
    high: float = 0.0

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            self.by_bytes + other.by_bytes,
            self.by_instructions + other.by_instructions,
            self.low + other.low,
            self.high + other.high,
        )


class Device:
    """The GPU of the figures.

    Attributes:
        figures: the content of the file.
    """

    def __init__(self, path: Path = FIGURES) -> None:
        self.figures: dict[str, Any] = json.loads(path.read_text())
        machine = self.figures["machine"]
        self.bytes_per_us = machine["copy_tb_s"] * 1e6
        self.instructions_per_us = machine["multiprocessors"] * 4 * machine["clock_ghz"] * 1e3
        self.issue_share, self.byte_share = machine["issue_share"], machine["byte_share"]
        self.ready = machine["ready"]
        self.launch_us = machine["launch_us"]

    def estimate(self, call: Call) -> Estimate:
        """The estimate of one call."""
        slow, fast = (
            call.issue.instructions / self.instructions_per_us / share
            for share in self.issue_shares(call.issue)
        )
        slowest, fastest = (call.bytes / self.bytes_per_us / share for share in self.byte_share)
        high = max(slow, slowest) + call.launches * self.launch_us
        return Estimate(fastest, fast, max(fast, fastest), high)

    def issue_shares(self, issue: Issue) -> tuple[float, float]:
        """The lowest and the highest share of the issue slots that a call fills."""
        if not issue.warps:
            return self.issue_share
        low, _, high = (issue_share(issue.warps, ready) for ready in self.ready)
        return low, high

    def total(self, calls: Iterable[Call]) -> Estimate:
        return sum(map(self.estimate, calls), Estimate())

    def measured_operator(self, operator: str, setting: str) -> float | None:
        """Measured microseconds of one call in a step; None if it was not measured."""
        for record in self.figures["operators"]:
            if (record["operator"], record["setting"]) == (operator, setting):
                return record["us"]
        return None

    def measured_steps(self, setting: str) -> Sequence[dict[str, Any]]:
        """Measured whole steps of a setting, at the commit of the figures."""
        return [record for record in self.figures["steps"] if record["setting"] == setting]
