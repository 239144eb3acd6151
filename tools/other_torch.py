"""Tests a wheel with PyTorch versions other than the one that built it.

python -m tools.other_torch dist/recgrela-*.whl 2.10.0 2.15.0 [--work FOLDER]

Installs the wheel with each version in an environment of its own, runs the tests of ops and models there, and
writes the counts to benchmarks/results/torch_versions.json. The downloads may take gigabytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks" / "results" / "torch_versions.json"
TESTS = ("ops", "models", "commands/test_env.py")


def run(*command: str | Path, cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    words = list(map(str, command))
    print("+", " ".join(words), flush=True)
    return subprocess.run(words, cwd=cwd, env=os.environ | environ, stdout=subprocess.PIPE, text=True)


def copy_tests(folder: Path) -> None:
    """Copies the tests, so that they import recgrela from the wheel and not from this tree."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(ROOT / "python_tests", folder / "python_tests")


def check(wheel: Path, version: str, work: Path) -> dict[str, Any]:
    """Installs torch and the wheel in an environment and runs the tests there; returns the record."""
    environment = work / f"torch-{version}"
    if not environment.exists():
        venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    pip = (python, "-m", "pip", "install", "-q")
    run(*pip, f"torch=={version}", "pytest", wheel).check_returncode()
    run(*pip, "--no-deps", "--force-reinstall", wheel).check_returncode()  # replaces an earlier wheel
    with tempfile.TemporaryDirectory() as name:
        folder, report = Path(name), Path(name) / "report.xml"
        facts = json.loads(run(python, "-m", "recgrela.env", "--json", cwd=folder).stdout)
        copy_tests(folder)
        tests = (f"python_tests/{test}" for test in TESTS)
        done = run(python, "-m", "pytest", "-q", f"--junitxml={report}", *tests, cwd=folder)
        print(done.stdout[-3000:])
        suites = ElementTree.parse(report).getroot().iter("testsuite")
        counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
        for suite in suites:
            counts = {key: value + int(suite.get(key, 0)) for key, value in counts.items()}
    return {
        "torch": facts["torch"],
        "torch_cuda": facts["torch_cuda"],
        "built": facts["built"],
        "python": facts["python"],
        "cpu": facts["cpu"],
        "cuda": facts["cuda"],
        "exit_code": done.returncode,
        **counts,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("versions", nargs="+", help="torch versions, such as 2.10.0")
    parser.add_argument("--work", type=Path, help="folder for the environments; it is kept and reused")
    options = parser.parse_args(argv)
    if not options.wheel.is_file():
        parser.error(f"{options.wheel} is not a file")
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        results = [check(options.wheel.resolve(), version, work.resolve()) for version in options.versions]
    commit = run("git", "-C", ROOT, "describe", "--always", "--dirty").stdout.strip()
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "wheel": options.wheel.name,
        "results": results,
    }
    RECORD.write_text(json.dumps(record, indent=2) + "\n")
    for result in results:
        passed = result["tests"] - result["failures"] - result["errors"] - result["skipped"]
        print(f"torch {result['torch']}: {passed} passed, {result['failures'] + result['errors']} failed")
    return int(any(result["exit_code"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
