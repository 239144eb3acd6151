"""Estimates the time of gated_rela on a GPU from counts of bytes and instructions, without running anything.

python -m tools.gpu_estimate [--batch 2048 --length 200 --dim 64 --heads 4]

The estimate is the larger of two times:

- the bytes that the kernels move, divided by the bandwidth;
- the PTX instructions of the loops over chunks, divided by the highest issue rate of all multiprocessors, or
  by half of it. Moves are not counted, because ptxas removes them; where the causal and the bidirectional
  form differ, both branches are. The machine code has more instructions, for example to add 64-bit addresses.

The floor is the time to move the bytes that any kernel must move. Needs nvcc; the defaults are for an H200.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tools.ptxas import find_nvcc

ROOT = Path(__file__).parents[1]
TILE = 16  # rows of a chunk, and channels of a head, for which instructions are counted
SIZES = {"float32": 4, "bfloat16": 2}
# Numbers of tensors [T, D] that any kernel, and these kernels, read and write. The backward of these kernels
# reads keys and values twice, and writes and reads states of about the size of one tensor.
TENSORS = {"forward": (5, 5), "backward": (9, 13)}


def ptx_of(nvcc: str, dtype: str) -> str:
    """Returns the kernels of one element type as PTX for sm_90."""
    text = ""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kernels.ptx"
        for source in sorted(ROOT.glob(f"csrc/kernels/gated_rela/*_{dtype}.cu")):
            target = "-gencode=arch=compute_90,code=compute_90"
            command = [nvcc, "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", target, "-ptx", source, "-o", out]
            subprocess.run(command, check=True)
            text += out.read_text()
    return text


def loops(body: str) -> Iterator[list[str]]:
    """Yields the instructions of each loop that has tensor-core products."""
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    labels = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
    for end, line in enumerate(lines):
        jump = re.search(r"\bbra(?:\.uni)?\s+(\$\w+)", line)
        begin = labels.get(jump[1], end) if jump else end
        inside = [x for x in lines[begin : end + 1] if re.match(r"(@!?%\w+\s+)?[a-z]", x)]
        if begin < end and any("mma." in x for x in inside):
            yield inside


def instructions(ptx: str, kernel: str) -> int:
    """Returns the number of instructions of one warp for one chunk, for heads of 16 channels."""
    names = re.findall(r"\.entry\s+(\S+)\(", ptx)
    (name,) = (n for n in names if f"rela_{kernel}_kernel" in n and f"Li{TILE}E" in n)
    body = re.search(rf"\.entry\s+{re.escape(name)}\(.*?\n\{{(.*?)\n\}}", ptx, re.S)
    assert body is not None
    moves = re.compile(r"(@!?%\w+\s+)?mov\.")
    return sum(sum(not moves.match(x) for x in loop) for loop in loops(body[1]))


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("batch", 2048), ("length", 200), ("dim", 64), ("heads", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--bandwidth", type=float, default=4.3e12, help="bytes per second")
    parser.add_argument("--clock", type=float, default=1.755e9, help="cycles per second")
    parser.add_argument("--multiprocessors", type=int, default=132)
    args = parser.parse_args()
    if args.dim != args.heads * TILE:
        parser.error(f"only heads of {TILE} channels are counted: --dim must be {TILE} times --heads")
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("tools.gpu_estimate: nvcc is not installed; put it on PATH or set CUDA_HOME")
    chunks = args.batch * args.heads * -(-args.length // TILE)
    issue = args.multiprocessors * 4 * args.clock
    table = Table(
        "causal",
        "dtype",
        "floor us",
        "bytes us",
        "instructions",
        "at 4 a cycle us",
        "at 2 a cycle us",
        "x floor",
    )
    for dtype, size in SIZES.items():
        ptx = ptx_of(nvcc, dtype)
        for direction, (floor, moved) in TENSORS.items():
            tensor = args.batch * args.length * args.dim * size / args.bandwidth
            count = instructions(ptx, direction)
            best, half = (max(chunks * count / issue * k, moved * tensor) for k in (1, 2))
            times = (floor * tensor, moved * tensor, best, half)
            floor_us, moved_us, best_us, half_us = (f"{1e6 * t:.0f}" for t in times)
            ratio = f"{best / (floor * tensor):.1f} to {half / (floor * tensor):.1f}"
            table.add_row(direction, dtype, floor_us, moved_us, str(count), best_us, half_us, ratio)
    Console().print("An estimate from counts: nothing ran on a GPU.", table, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
