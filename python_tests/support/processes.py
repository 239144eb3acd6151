"""Commands of the package in several processes, as started by torchrun but without its slow agent."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from recgrela.parallel.launch import without_launch

ROOT = Path(__file__).parents[2]
TIMEOUT = 900.0


def run_commands(world: int, commands: Sequence[Sequence[str]]) -> list[subprocess.CompletedProcess[str]]:
    """Runs commands one after the other in the same `world` processes, which start once.

    Args:
        world: number of processes.
        commands: the name of a module of `recgrela`, such as "train", and its options.

    Returns:
        Exit code and output of each process. The exit code is 1 if a command's is not 0.
    """
    ports = [free_port() for _ in commands]
    started = start(world, [sys.executable, "-m", __name__, json.dumps(commands), json.dumps(ports)])
    return wait(started)


def start(world: int, command: Sequence[str], **environ: str) -> list[subprocess.Popen[str]]:
    """Starts a command in `world` processes with the environment variables of torchrun."""
    port, started = free_port(), []
    for rank in range(world):
        place = {
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            command,
            env=without_launch(os.environ) | place | environ,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
    return started


def free_port() -> int:
    """A port that no process listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait(started: Sequence[subprocess.Popen[str]]) -> list[subprocess.CompletedProcess[str]]:
    """The results of processes. Kills them if they take too long."""
    try:
        return [
            subprocess.CompletedProcess(process.args, process.returncode, *output)
            for process, output in [(process, process.communicate(timeout=TIMEOUT)) for process in started]
        ]
    finally:
        for process in started:
            process.kill()


def main() -> int:
    """Runs the commands; the exit code says whether all succeeded."""
    codes = []
    for (module, *argv), port in zip(json.loads(sys.argv[1]), json.loads(sys.argv[2]), strict=True):
        os.environ["MASTER_PORT"] = str(port)  # the store of the previous command's group may still be open
        codes.append(importlib.import_module(f"recgrela.{module}").main(argv))
        print(json.dumps([module, codes[-1]]), flush=True)
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
