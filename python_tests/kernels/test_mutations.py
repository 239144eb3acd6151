"""The tests in csrc/tests find every fault in the lists of mutations.

One program holds all faults, and the environment variable RECGRELA_MUTATION selects one. Each source with a
fault is thus compiled once.
"""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

from python_tests.kernels import (
    mlp_mutations,
    narrow_mutations,
    rela_mutations,
    scan_mutations,
    step_mutations,
    wide_mutations,
)
from python_tests.kernels.mutation import Mutation
from python_tests.support.simt import BUILD, ROOT, build_simt

MUTATIONS = [
    *rela_mutations.MUTATIONS,
    *wide_mutations.MUTATIONS,
    *scan_mutations.MUTATIONS,
    *narrow_mutations.MUTATIONS,
    *mlp_mutations.MUTATIONS,
    *step_mutations.MUTATIONS,
]
FOLDER = BUILD.with_name("mutants")
DECLARATION = "namespace recgrela::simt {\nextern int mutation;\n}\n"
DEFINITION = """\
#include <cstdlib>

namespace recgrela::simt {
extern int mutation;
int mutation = [] {
  const char* const number = std::getenv("RECGRELA_MUTATION");
  return number ? std::atoi(number) : 0;
}();
}  // namespace recgrela::simt
"""


def write(path: Path, text: str) -> Path:
    """Writes a file unless it has this text already, so that only what changed is compiled again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return path


@pytest.fixture(scope="module")
def program() -> Path:
    """The test program with all faults."""
    sources = {
        str(path.relative_to(ROOT / "csrc/kernels")): path.read_text()
        for path in (ROOT / "csrc/kernels").rglob("*")
        if path.is_file()
    }
    for file in {mutation.file for mutation in MUTATIONS}:
        sources[file] = DECLARATION + sources[file]
    for number, mutation in enumerate(MUTATIONS, 1):
        sources[mutation.file] = mutation.apply(sources[mutation.file], number)
    written = {write(FOLDER / "kernels" / file, text) for file, text in sources.items()}
    written.add(write(FOLDER / "mutation.cpp", DEFINITION))
    for unit in {mutation.unit for mutation in MUTATIONS}:
        name = unit.replace("/", "_").replace(".cu", ".cpp")
        written.add(write(FOLDER / name, f'#include "kernels/{unit}"\n'))
    for path in FOLDER.rglob("*"):
        if path.is_file() and path not in written:
            path.unlink()
    return build_simt("mutants_test", RECGRELA_MUTANTS=FOLDER) / "mutants_test"


def run_cases(program: Path, number: int, cases: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *cases.split()],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"RECGRELA_MUTATION": str(number)},
    )


@cache
def run_without_fault(program: Path, cases: str) -> subprocess.CompletedProcess[str]:
    """The cases without a fault, which many faults share."""
    return run_cases(program, 0, cases)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_mutation_is_found(program: Path, mutation: Mutation) -> None:
    """The cases pass without the fault; with it they fail, or AddressSanitizer ends the program."""
    correct = run_without_fault(program, mutation.cases)
    faulty = run_cases(program, MUTATIONS.index(mutation) + 1, mutation.cases)
    assert correct.returncode == 0, correct.stdout[-4000:] + correct.stderr[-4000:]
    found = "FAILED" in faulty.stdout or "ERROR: AddressSanitizer" in faulty.stderr
    assert faulty.returncode == 1 and found, faulty.stdout[-4000:] + faulty.stderr[-4000:]
