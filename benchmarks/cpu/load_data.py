"""Time to read, filter and pack a data set.

python -m benchmarks.cpu.load_data PATH [--rounds 5]
"""

from __future__ import annotations

import statistics
import time

from benchmarks.timing import arguments
from recgrela.data import DataConfig, load


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("path", help="a file or folder that --data.path takes")
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
