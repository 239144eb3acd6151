"""Seconds to read, filter and pack a data set.

python -m benchmarks.cpu.load_data PATH [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import time

from recgrela.data import DataConfig, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    times = []
    for _ in range(args.rounds):
        began = time.perf_counter()
        data = load(DataConfig(path=args.path))
        times.append(time.perf_counter() - began)
    d = data.description
    print(
        f"{d['source']}: {d['users']:,} users, {d['items']:,} items, {d['events']:,} events with padding ids"
    )
    print(f"first {times[0]:.2f} s, median of {args.rounds} {statistics.median(times):.2f} s")


if __name__ == "__main__":
    main()
