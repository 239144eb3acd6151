from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

from python_tests.support.sandbox import Sandbox

Fuzz = Callable[..., None]


@pytest.fixture(scope="module")
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(request.module.TARGETS) as box:
        yield box


@pytest.fixture
def fuzz(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Fuzz:
    """Calls a function with examples of strategies and prints how many had each outcome.

    By default their number and choice are fixed; with --fuzz-examples, that many random ones are drawn.
    """
    wanted = request.config.getoption("fuzz_examples")

    def run(function: Callable[[Any], str], strategy: SearchStrategy[Any], examples: int) -> None:
        outcomes: Counter[str] = Counter()

        def check(value: Any) -> None:
            outcomes[function(value)] += 1

        rules = settings(
            max_examples=wanted or examples,
            derandomize=wanted is None,
            database=None,
            deadline=None,  # tests assert no times
            suppress_health_check=list(HealthCheck),
        )
        try:
            rules(given(strategy)(check))()
        finally:
            counts = ", ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items()))
            print(f"{request.node.name}: {outcomes.total():,} examples: {counts}")
            record_property("fuzz", dict(outcomes))

    return run
