"""A CUDA graph that runs on any device."""

from __future__ import annotations

from collections.abc import Callable


class FakeGraph:
    """Calls the body at each replay; the capture runs nothing, as with a CUDA graph."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, body: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            body()

        return replay
