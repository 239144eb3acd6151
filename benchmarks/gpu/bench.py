"""The step that measures the ops: ours first, then each family of peers in a process of its own."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.measure import (
    COPY_BYTES,
    cache_bytes,
    copy_bandwidth,
    expected_results,
    figures,
    is_cuda,
    make_sets,
    measure,
    peak_bytes,
)
from benchmarks.gpu.packages import describe
from benchmarks.gpu.peers import COMPILED, FAMILIES, Family
from benchmarks.gpu.step import Outcome, Settings
from benchmarks.gpu.workers import Record, Worker, our_call
from benchmarks.timing import OURS
from python_tests.cases import CASES, Case
from python_tests.cases.compare import TOLERANCES, errors_of, fault_of

MIN_SECONDS = 3.0  # time left that a peer needs to start
NO_TIME = "no time left"


@dataclass(frozen=True)
class Plan:
    """How to measure a case.

    Attributes:
        rounds: number of samples.
        headline: whether peers measure it before other cases.
        compiled: whether torch.compile is measured too.
    """

    case: Case
    rounds: int
    headline: bool = True
    compiled: bool = False


def round_robin(iterators: Sequence[Iterator[Case]]) -> Iterator[Case]:
    """The first case of each op, then the second of each, ..."""
    for cases in itertools.zip_longest(*iterators):
        yield from (case for case in cases if case is not None)


def plans(quick: bool) -> list[Plan]:
    """The headline cases of each op, then the further cases of all."""
    many, few = (10, 5) if quick else (40, 12)
    headline = [case for op in CASES for case in op.headline(quick)]
    further = round_robin([op.further(quick) for op in CASES])
    return [
        *(
            Plan(case, many if case.compiled else few, compiled=case.compiled and not quick)
            for case in headline
        ),
        *(Plan(case, few, headline=False) for case in further),
    ]


def measure_ours(plan: Plan, device: str, bandwidth: float) -> Record:
    """The record of our op for one case; it has no speed if the results are wrong."""
    case = plan.case
    record: Record = {"case": str(case), "status": "passed", "peers": {}}
    try:
        sets = make_sets(case, device)
        errors = errors_of(expected_results(case, device), case.results(sets[0]))
        record["errors"] = {name: error._asdict() for name, error in errors.items()}
        if fault := fault_of(errors, TOLERANCES[case.dtype]):
            return record | {"status": "failed", "fault": fault}
        samples = measure({OURS: our_call(case)}, sets, plan.rounds)[OURS]
        peak = peak_bytes(our_call(case), sets[0])
        return record | {"ours": figures(case, samples, bandwidth) | {"peak_bytes": peak}}
    except Exception as error:  # the other cases must still run
        return record | {"status": "failed", "fault": describe(error)}
    finally:
        if is_cuda(device):
            torch.cuda.empty_cache()


def faster_eager(record: Record) -> str | None:
    """Name of the fastest form in plain PyTorch; None if none was measured."""
    ratios = {
        name: peer["ratio"]
        for name, peer in record["peers"].items()
        if name.startswith("eager ") and "ratio" in peer
    }
    return min(ratios, key=ratios.__getitem__, default=None)


def wanted_peers(family: Family, plan: Plan, record: Record) -> set[str] | None:
    """Names of a family's peers to measure, None for all; torch.compile takes only the fastest form."""
    if "ours" not in record or not family.computes(plan.case):
        return set()
    if family.name != "torch.compile":
        return None
    best = faster_eager(record) if plan.compiled else None
    return {COMPILED + best.removeprefix("eager ")} if best else set()


def measure_peers(
    worker: Worker, chosen: Sequence[tuple[Plan, Record]], deadline: float, save: Callable[[], None]
) -> None:
    """Adds a family's peers to the records, case after case, until no time is left."""
    family = worker.family
    for plan, record in chosen:
        wanted = wanted_peers(family, plan, record)
        if wanted == set():
            continue
        left = deadline - time.monotonic()
        if left < MIN_SECONDS:
            record["peers"].setdefault(family.name, {"note": NO_TIME, "missed": True})
            continue
        for name, found in worker.records(plan.case, wanted, plan.rounds, left):
            record["peers"][name] = found
            print(record["case"], name, found.get("note", f"{found.get('ratio', 0):.2f}"), flush=True)
            save()
        record["faster_eager"] = faster_eager(record)


def run_plans(
    chosen: Sequence[Plan],
    device: str,
    seconds: float,
    save: Callable[[dict[str, Any]], None],
    families: Sequence[Family] = FAMILIES,
    copy_bytes: int = COPY_BYTES,
) -> dict[str, Any]:
    """Measures our op in all cases, then the peers, until no time is left.

    Peers measure the headline cases before the others. A family gets at most half of the time left if other
    families wait for theirs.

    Args:
        save: called with the details after each result.

    Returns:
        {"copy_gb_s", "l2_bytes", "cases": [records]}; cases that were not started have the status "not run".
    """
    deadline = time.monotonic() + seconds
    bandwidth = copy_bandwidth(device, copy_bytes)
    records: list[Record] = []
    found = {"copy_gb_s": bandwidth / 1e9, "l2_bytes": cache_bytes(device), "cases": records}
    for plan in chosen:
        if time.monotonic() > deadline:
            record = {"case": str(plan.case), "status": "not run", "fault": NO_TIME, "peers": {}}
        else:
            record = measure_ours(plan, device, bandwidth)
        print(record["case"], record["status"], record.get("fault", ""), flush=True)
        records.append(record)
        save(found)
    pairs = list(zip(chosen, records, strict=True))
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(family, device, bandwidth)) for family in families]
        for headline in (True, False):
            part = [(plan, record) for plan, record in pairs if plan.headline == headline]
            for i, worker in enumerate(workers):
                last = not any(other.is_installed() for other in families[i + 1 :])
                left = deadline - time.monotonic()
                measure_peers(worker, part, deadline if last else deadline - left / 2, lambda: save(found))
    return found


def benchmarks(settings: Settings) -> Outcome:
    """Measures the ops and their peers."""
    details = run_plans(plans(settings.quick), "cuda", settings.limit - 15, settings.save)
    return (*judge(details), details)


def judge(details: dict[str, Any]) -> tuple[str, str]:
    """Status and summary. A case that was not run is not a failure, unless no case passed."""
    statuses = [case["status"] for case in details["cases"]]
    counts = {status: statuses.count(status) for status in ("passed", "failed", "not run")}
    summary = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    summary += f"; copy {details['copy_gb_s']:,.0f} GB/s"
    if failed := next((case for case in details["cases"] if case["status"] == "failed"), None):
        summary += f"; {failed['case']}: {failed['fault']}"
    if missed := missed_peers(details):
        summary += f"; missed: {', '.join(missed)}"
    return ("failed" if counts["failed"] or not counts["passed"] else "passed"), summary


def missed_peers(details: dict[str, Any]) -> list[str]:
    """Peers that were killed or had no time, each with its number of cases."""
    names = [name for case in details["cases"] for name, peer in case["peers"].items() if peer.get("missed")]
    return [f"{name} ({names.count(name)})" for name in dict.fromkeys(names)]
