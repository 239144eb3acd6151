"""The environment variables by which torchrun tells a process its place among the others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from recgrela.system.errors import ConfigError

_INT_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Launch:
    """The place of this process among those that a launcher such as torchrun started.

    Attributes:
        rank: number of this process, from 0.
        world: number of processes.
        local_rank: number of this process on its host; also the number of its GPU.
        local_world: number of processes on its host.
        restarts: how often torchrun has restarted the processes.
        max_restarts: how often it may restart them.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    restarts: int = 0
    max_restarts: int = 0

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Launch:
        """The place that the environment gives; that of a single process without RANK and WORLD_SIZE.

        Raises:
            ConfigError: a variable is missing, not a number, or out of range.
        """
        if "RANK" not in environ or "WORLD_SIZE" not in environ:
            return cls()
        rank, world, local_rank, local_world = (_number(environ, name) for name in _INT_VARIABLES)
        for name, value, limit in (("RANK", rank, world), ("LOCAL_RANK", local_rank, local_world)):
            if value >= limit:
                raise ConfigError(f"{name}={value} is not below the number of processes, {limit}")
        if world > 1:
            for name in ("MASTER_ADDR", "MASTER_PORT"):
                if not environ.get(name):
                    raise ConfigError(f"WORLD_SIZE={world}, but {name} is not set; start with torchrun")
        restarts = int(environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        return cls(
            rank,
            world,
            local_rank,
            local_world,
            restarts,
            int(environ.get("TORCHELASTIC_MAX_RESTARTS", 0)),
        )


def without_launch(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child process that is not one of the launched processes."""
    names = (*_INT_VARIABLES, "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {
        name: value
        for name, value in environ.items()
        if name not in names and not name.startswith("TORCHELASTIC_")
    }


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name)
    if text is None:
        raise ConfigError(f"RANK and WORLD_SIZE are set, but {name} is not; start with torchrun")
    if not text.isdecimal():
        raise ConfigError(f"{name}={text!r} is not a whole number")
    return int(text)
