"""Writes the figures of a gpu_check that docs/speed.md, tools.gpu_estimate and tools.step_cost use.

python -m tools.gpu_record gpu_check.json benchmarks/results/h200_a0aae5b.json
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from recgrela.system.files import atomic_write_text
from tools.gpu_estimate import FIGURES_BEFORE, RECORD, Call, Gpu, fit
from tools.instructions.record import read_record

Figures = dict[str, Any]
DTYPES = {"fp32": "float32", "complex64": "float32", "bf16": "bfloat16"}
# Kernels by operator, without those that several operators launch. The calls are the launches of the first.
KERNELS = {
    "gated_rela": ("rela_forward", "rela_key_sums"),
    "gated_rela_backward": ("rela_backward", "rela_query_sums"),
    "gated_rela_last": ("last_forward",),
    "gated_rela_last_backward": ("last_backward",),
    "rela_projections": ("rela_projections_forward",),
    "rela_projections_backward": ("rela_projections_backward",),
    "mlp_block": ("mlp_forward",),
    "mlp_block_backward": ("mlp_d_weights", "mlp_block_d_rows"),
    "linear": ("linear_forward",),
    "linear_backward": ("linear_backward",),  # of 16-bit rows
    "linear_backward of float32": ("linear_split_backward",),
    "add_norm": ("add_norm_forward",),
    "add_norm_backward": ("add_norm_backward",),
    "embedding": ("embedding_forward",),
    "embedding_backward": tuple(
        f"embedding_{part}" for part in ("sums", "count", "scan", "move", "crossing")
    ),
    "linear_cross_entropy": ("softmax", "gradients", "prepare", "sum"),
}


def calls_of(case: str, ours: Mapping[str, float]) -> Iterator[Call]:
    """The forward and the backward of a measured case whose instructions are counted."""
    op, dtype = case.split()[0], next((word for word in case.split() if word in DTYPES), "")
    size = {name: int(value) for name, value in re.findall(r"\b([A-Z])=(\d+)", case)}
    if op == "gated_rela":
        variant, form, width = f"head {size['D'] // size['H']}", case.split()[1], size["D"]
    elif op in ("causal_conv1d", "linear_scan", "selective_scan"):
        form, width = "", size["C"]
        kind = "complex" if "complex" in case else "real"
        steps = "constant" if "constant" in case else "each step"
        variant = {"causal_conv1d": f"K {size.get('K')}", "selective_scan": f"N {size.get('N')}"}.get(
            op, f"{kind}, {steps}"
        )
    else:
        return
    for direction in ("forward", "backward"):
        us = round(ours[f"{direction}_us"], 1)
        yield Call(op, direction, variant, DTYPES[dtype], form, size["B"], size["L"], width, us)


def operators_of(row: Figures) -> Iterator[Figures]:
    """Microseconds of a call of each of our operators in a step."""
    for operator, kernels in KERNELS.items():
        kinds = [row["kinds"].get(f"recgrela {kernel}") for kernel in kernels]
        if kinds[0] is None:
            continue
        us = 1e3 * sum(kind["ms"] for kind in kinds if kind) / round(kinds[0]["launches"])
        yield {"operator": operator.split()[0], "setting": row["setting"], "us": round(us, 1)}


def step_of(row: Figures) -> Figures:
    """A training step: its times, memory, and the microseconds and launches of each kind of kernel."""
    kinds = {
        kind: [round(1e3 * found["ms"], 1), round(found["launches"])] for kind, found in row["kinds"].items()
    }
    figures = {
        "ms": round(row["ms"], 3),
        "host_ms": round(row["host_ms"], 3),
        "peak_mb": round(row["peak_mb"], 1),
    }
    return {"setting": row["setting"], "way": row["way"]} | figures | {"kinds": kinds}


def case_of(case: Figures) -> Figures:
    """A measured case: its times, shares of the floor, memory, and the times of its peers divided by ours."""
    ours = case["ours"]
    times = {f"{d}_us": round(ours[f"{d}_us"], 1) for d in ("forward", "backward")}
    shares = {f"{d}_share": round(ours[f"{d}_share"], 3) for d in ("forward", "backward")}
    peers = {name: round(peer["ratio"], 2) for name, peer in case["peers"].items() if "ratio" in peer}
    rest = {"host_us": round(ours["host_us"]), "peak_mb": round(ours["peak_bytes"] / 1e6, 1)}
    return {"case": case["case"]} | times | shares | rest | ({"peers": peers} if peers else {})


def figures_of(report: Figures) -> Figures:
    """The record of a report, with the constants of before in place of those that are fitted."""
    steps = {step["step"]: step for step in report["steps"]}
    facts, details = steps["facts"]["details"], steps["benchmarks"]["details"]
    measured = [case for case in details["cases"] if "ours" in case]
    rows = [row for row in steps["whole_step"]["details"]["rows"] if "ms" in row]
    ours = [row for row in rows if row["way"] == "recgrela"]
    before = json.loads(FIGURES_BEFORE.read_text())
    calls = {replace(c, us=0.0): c for case in measured for c in calls_of(case["case"], case["ours"])}
    known = (replace(Call(**call), us=0.0) for call in before["calls"])
    names = (
        "gpu",
        "capability",
        "multiprocessors",
        "memory_bytes",
        "l2_bytes",
        "driver",
        "torch",
        "cuda",
        "python",
    )
    machine = {name: facts[name] for name in names} | {"copy_tb_s": round(details["copy_gb_s"] / 1e3, 3)}
    return {
        "benchmark": "python -m benchmarks.gpu.gpu_check",
        "date": facts["date"],
        "commit": facts["commit"],
        "machine": before["machine"] | machine,
        "summaries": {
            name: step["summary"] for name, step in steps.items() if name in ("reference", "graph")
        },
        "steps": [step_of(row) for row in rows],
        "operators": [found for row in ours for found in operators_of(row)],
        "calls": [asdict(calls[call]) for call in known if call in calls],
        "cases": [case_of(case) for case in measured],
        "not_measured": [case["case"] for case in details["cases"] if "ours" not in case],
    }


def with_constants(figures: Figures, path: Path) -> Figures:
    """The figures with the constants that are fitted to them."""
    atomic_write_text(path, text_of(figures))
    gpu, machine = Gpu(path), figures["machine"]
    ready, byte_share = fit(gpu, read_record(RECORD)[1])
    small = min((s for s in figures["steps"] if s["way"] == "recgrela"), key=lambda s: s["ms"])
    launches = sum(number for _, number in small["kinds"].values())
    low, _, high = machine["ready"]
    fitted = {
        "ready": [low, ready, max(high, ready)],
        "call_byte_share": byte_share,
        "launch_us": round(1e3 * small["ms"] / launches, 1),
    }
    notes = {
        "ready": "probability that a warp can issue in a cycle: fitted to the calls, between likely bounds",
        "call_byte_share": "share of a copy's bandwidth: fitted to the calls",
        "launch_us": f"the step '{small['setting']}' with CUDA graphs, for {launches} launches",
        "issue_share, byte_share, clock_ghz": "of the first measurements; see h200.json",
        "operators": "kernels of a step without add_partials, which several operators launch",
        "cases": "the forward of rela_projections and of linear with two layers contains a concatenation",
    }
    return figures | {"machine": machine | fitted, "notes": notes}


def text_of(figures: Figures) -> str:
    """JSON with a line for each element of a list."""

    def item(value: Any) -> str:
        if isinstance(value, list):
            return "[\n" + ",\n".join(f"    {json.dumps(x)}" for x in value) + "\n  ]"
        if isinstance(value, dict):
            return (
                "{\n"
                + ",\n".join(f"    {json.dumps(k)}: {json.dumps(x)}" for k, x in value.items())
                + "\n  }"
            )
        return json.dumps(value)

    return (
        "{\n"
        + ",\n".join(f"  {json.dumps(name)}: {item(value)}" for name, value in figures.items())
        + "\n}\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the record."""
    parser = argparse.ArgumentParser(
        "tools.gpu_record", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("report", type=Path, help="gpu_check.json")
    parser.add_argument("record", type=Path, help="file to write")
    args = parser.parse_args(argv)
    figures = figures_of(json.loads(args.report.read_text()))
    atomic_write_text(args.record, text_of(with_constants(figures, args.record)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
