"""Errors of a build."""

from __future__ import annotations

CPU_ONLY = "RECGRELA_CUDA=0 builds the CPU kernels alone"


class BuildError(SystemExit):
    """Ends the build with a message, which pip, uv and build print without a traceback.

    Args:
        cause: The problem.
        remedy: The fix.
    """

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"recgrela cannot be built: {cause}\nTo fix it: {remedy}")
