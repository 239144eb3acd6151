"""Implementations that our ops are measured against: plain PyTorch, torch.compile, and installed packages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch

from benchmarks.gpu import packages
from benchmarks.gpu.measure import Call
from python_tests.cases import Case
from python_tests.cases.gated_rela import MAX_MASKED

MAX_LOOP = 1024  # benchmarks do not loop over the rows of longer sequences
COMPILED = "torch.compile of "


@dataclass(frozen=True)
class Peer:
    """One way to compute y of a case: a call, or a note that says why it cannot."""

    name: str
    call: Call | None
    note: str = ""


@dataclass(frozen=True)
class Family:
    """Peers that share a process.

    Attributes:
        peers: returns the peers of a case. It is called in that process, where it may import packages.
        seconds: limit of one peer's first call and measurement.
        package: the module that it needs; "" if none.
        op: the op that it computes; "" for every op.
    """

    name: str
    peers: Callable[[Case], list[Peer]]
    seconds: float
    package: str = ""
    op: str = ""

    def computes(self, case: Case) -> bool:
        return self.op in ("", case.op)

    def is_installed(self) -> bool:
        """Reports whether the package can be found; nothing is imported."""
        return not self.package or find_spec(self.package) is not None


def obstacle(case: Case, form: str) -> str:
    """The reason why a form is not measured at this length; "" if it is."""
    if form == "causal_masked" and case.length > MAX_MASKED:
        return f"L x L products at L={case.length}"
    if form.startswith("by_row") and case.length > MAX_LOOP:
        return f"{case.length} steps at L={case.length}"
    return ""


def eager_peers(case: Case) -> list[Peer]:
    """The forms in plain PyTorch."""
    peers = []
    for form in case.forms:
        note = obstacle(case, form)
        call = None if note else partial(case.plain, form)
        peers.append(Peer(f"eager {form}", call, note))
    return peers


def compiled_peers(case: Case) -> list[Peer]:
    """torch.compile of each form, which compiles at its first call."""
    torch.compiler.reset()  # otherwise torch.compile stops compiling at its limit of recompilations
    compiled = torch.compile(case.form, dynamic=False)
    forms = [form for form in case.forms if case.compiled and not obstacle(case, form)]
    return [Peer(COMPILED + form, partial(case.plain, form, compute=compiled)) for form in forms]


@dataclass(frozen=True)
class PackagePeers:
    """Makes the peer of a package."""

    name: str

    def __call__(self, case: Case) -> list[Peer]:
        try:
            return [Peer(self.name, packages.PACKAGES[self.name].make(case))]
        except packages.Unusable as error:
            return [Peer(self.name, None, str(error))]


FAMILIES = (
    Family("eager", eager_peers, 20.0),
    Family("torch.compile", compiled_peers, 40.0),
    *(Family(name, PackagePeers(name), 20.0, p.module, p.op) for name, p in packages.PACKAGES.items()),
)
