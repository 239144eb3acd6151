"""Why a build cannot be, for people."""

from __future__ import annotations

CPU_ONLY = "RECGRELA_CUDA=0 builds the CPU kernels alone"


class BuildError(SystemExit):
    """Ends the build with a message alone: pip, uv and build print it without a traceback.

    Args:
        cause: What was found.
        remedy: What to do about it.
    """

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"recgrela cannot be built: {cause}\nTo mend it: {remedy}")
