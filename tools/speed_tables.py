"""Writes the tables of docs/speed.md that come from records of measurements on a GPU.

python -m tools.speed_tables    after python -m tools.gpu_record
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from tools.gpu_estimate import FIGURES, FIGURES_BEFORE, RECORD, Gpu, markdown_of
from tools.instructions.record import read_record
from tools.nvcc import ROOT

PAGE = ROOT / "docs" / "speed.md"
# Cases that the page leaves out: further sizes, and those whose forward contains a concatenation.
LEFT_OUT = re.compile(
    r"fp16|bias|post-norm|\+|rela_projections|mlp gelu.*B=2048"
    r"|(bidirectional|add_norm).*D=128|items=100000|O=192|O=256|F=512|B=1 L=2048"
)


def steps_table(before: dict[str, Any], now: dict[str, Any]) -> str:
    """A row for each training step."""
    steps = {(step["setting"], step["way"]): step for step in now["steps"]}
    titles = ("ms", "host ms", "peak MB", "ms without graphs", "plain PyTorch", "ratio", "ms before")
    lines = [f"| | {' | '.join(titles)} |", "|---|" + "---|" * len(titles)]
    for setting in dict.fromkeys(setting for setting, _ in steps):
        ours, plain = steps[setting, "recgrela"], steps.get((setting, "plain PyTorch"))
        one_by_one = steps[setting, "recgrela without CUDA graphs"]
        ways = [step for step in before["steps"] if step["setting"] == setting]
        cells = [
            f"**{ours['ms']:.2f}**",
            f"{ours['host_ms']:.2f}",
            f"{ours['peak_mb']:,.0f}",
            f"{one_by_one['ms']:.2f}",
            f"{plain['ms']:.1f} ms, {plain['peak_mb']:,.0f} MB" if plain else "not measured",
            f"{plain['ms'] / ours['ms']:.1f} x" if plain else "",
            f"{min(step['ms'] for step in ways if step['way'].startswith('recgrela'))}",
        ]
        lines.append(f"| `{setting}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def kinds_table(now: dict[str, Any], number: int = 10) -> str:
    """The kinds of kernels with the largest shares of the steps, and their share of each step."""
    steps = [step for step in now["steps"] if step["way"] == "recgrela"]
    shares: dict[str, list[float]] = {}
    for i, step in enumerate(steps):
        total = sum(us for us, _ in step["kinds"].values())
        for kind, (us, _) in step["kinds"].items():
            shares.setdefault(kind, [0.0] * len(steps))[i] = us / total
    largest = sorted(shares, key=lambda kind: -sum(shares[kind]))[:number]
    lines = [
        f"| % of a step | {' | '.join(step['setting'] for step in steps)} |",
        "|---|" + "---|" * len(steps),
    ]
    for kind in largest:
        cells = [f"{100 * share:.0f}" if share else "" for share in shares[kind]]
        name = f"`{kind.removeprefix('recgrela ')}`" if kind.startswith("recgrela ") else kind
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def operators_table(now: dict[str, Any]) -> str:
    """A row for each measured case, with both types of rows."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for case in now["cases"]:
        if LEFT_OUT.search(case["case"]):
            continue
        dtype = "bfloat16" if "bf16" in case["case"] else "float32"
        rows.setdefault(re.sub(r" (fp32|bf16)", "", case["case"]), {})[dtype] = case
    titles = [
        f"{dtype}, {what}" for dtype in ("float32", "bfloat16") for what in ("us (% of floor)", "eager")
    ]
    lines = [f"| | {' | '.join(titles)} |", "|---|" + "---|" * len(titles)]
    operators = dict.fromkeys(name.split()[0] for name in rows)
    for name in sorted(rows, key=lambda name: list(operators).index(name.split()[0])):
        cells = [cell for dtype in ("float32", "bfloat16") for cell in case_cells(rows[name].get(dtype))]
        operator, _, sizes = name.partition(" ")
        lines.append(f"| `{operator}` {sizes} | {' | '.join(cells)} |")
    return "\n".join(lines)


def case_cells(case: dict[str, Any] | None) -> tuple[str, str]:
    """Times of a forward and a backward, their share of the floor, and the time of the fastest eager form."""
    if case is None:
        return "", ""
    us = f"{case['forward_us']:,.0f} / {case['backward_us']:,.0f}"
    share = f"{100 * case['forward_share']:.0f} / {100 * case['backward_share']:.0f}"
    eager = [ratio for name, ratio in case.get("peers", {}).items() if name.startswith("eager")]
    return f"{us} ({share})", f"{min(eager):.1f} x" if eager else ""


def tables() -> dict[str, str]:
    """The tables by the marks of their places."""
    before, now = (json.loads(path.read_text()) for path in (FIGURES_BEFORE, FIGURES))
    predicted = Gpu(constants=FIGURES_BEFORE)
    return {
        "steps": steps_table(before, now),
        "kinds": kinds_table(now),
        "operators": operators_table(now),
        "estimates": markdown_of(Gpu(FIGURES_BEFORE), predicted, read_record(RECORD)[1]),
    }


def updated(page: str) -> str:
    """The page with current tables."""
    for mark, text in tables().items():
        marks = rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)"
        page, count = re.subn(
            marks, lambda found, text=text: f"{found[1]}{text}\n{found[2]}", page, flags=re.S
        )
        assert count == 1, f"docs/speed.md has no place marked {mark}"
    return page


def main() -> int:
    PAGE.write_text(updated(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
