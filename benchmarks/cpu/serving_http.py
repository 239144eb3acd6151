"""Rates and latencies of `python -m recgrela.serve` over HTTP on this machine, with wrk as the client.

python -m benchmarks.cpu.serving_http RUN [--users 2000 --events 165 --seconds 8 --connections 1 8 64]

The store is an SQLite file in a temporary folder (TMPDIR names another disk) with random histories of the
run's items, whose states are up to date. The route /health/live, which does not use the model, shows what
HTTP itself costs. The client takes a part of the machine, too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.timing import record
from python_tests.support.server import running
from recgrela.inference.recommender import Recommender
from recgrela.serve.engine import Engine
from recgrela.store import open_store

# Lua of a request. Each thread of wrk draws users and items from a sequence of its own.
REQUESTS = {
    "GET /health/live": "return wrk.format('GET', '/health/live')",
    "GET /users/{user}/recommendations": """
      return wrk.format('GET', '/users/' .. user() .. '/recommendations?k=10')""",
    "POST /events, one event": """
      return post('/events', '{"user": "' .. user() .. '", "item": "' .. item() .. '"}')""",
    "POST /recommendations, 50 items": """
      local items = {}
      for i = 1, 50 do items[i] = '"' .. item() .. '"' end
      return post('/recommendations', '{"items": [' .. table.concat(items, ',') .. ']}')""",
}
SCRIPT = """
local tokens = {TOKENS}
local function user() return math.random(0, USERS - 1) end
local function item() return tokens[math.random(1, #tokens)] end
local function post(path, body)
  return wrk.format('POST', path, {['content-type'] = 'application/json'}, body)
end
function init() math.randomseed(os.time()) end
function request() REQUEST end
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format('{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "errors": %d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


def fill(run: Path, path: Path, users: int, events: int) -> list[str]:
    """Stores random histories and their states; returns the ids of the items."""
    torch.set_num_threads(1)
    recommender = Recommender.load(run, device="cpu")
    tokens, rng = recommender.item_ids, np.random.default_rng(0)
    with open_store(path) as store:
        columns = {
            "user": np.repeat(np.arange(users), events),
            "item": pa.array(tokens).take(pa.array(rng.integers(0, len(tokens), users * events))),
            "time": np.tile(np.arange(events) + 1e9, users),
        }
        store.append_table(pa.table(columns))
        Engine(recommender, store).rebuild()
    return tokens


def measure(url: str, request: str, connections: int, args: Any, tokens: list[str], folder: Path) -> dict:
    """One run of wrk."""
    listed = ",".join(json.dumps(token) for token in tokens)
    script = SCRIPT.replace("TOKENS", listed).replace("USERS", str(args.users)).replace("REQUEST", request)
    path = folder / "request.lua"
    path.write_text(script)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{args.seconds}s", "--latency", "-s", str(path), url]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(output[output.index('{"requests"') :])
    if found["errors"]:
        raise SystemExit(f"{found['errors']} of {found['requests']} requests failed; no rate is reported")
    return {
        "requests_per_second": round(found["requests"] / found["seconds"]),
        "p50_ms": round(found["p50"], 2),
        "p99_ms": round(found["p99"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="run folder")
    for name, default in {"users": 2000, "events": 165, "seconds": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 64], help="default: 1 8 64")
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed; run: apt-get install wrk")
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = fill(Path(args.run), folder / "store.sqlite", args.users, args.events)
        with running(Path(args.run), folder / "store.sqlite") as server:
            for what, request in REQUESTS.items():
                for connections in args.connections:
                    found = measure(server.url, request, connections, args, tokens, folder)
                    results.append({"request": what, "connections": connections, **found})
                    print(", ".join(f"{key} {value}" for key, value in results[-1].items()), flush=True)
    record("serving_http", {**vars(args), "run": Path(args.run).name}, results)


if __name__ == "__main__":
    main()
