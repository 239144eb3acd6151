"""Gated rotary-enhanced linear attention for long-sequence recommendation.

`recgrela.ops` has the operators, `recgrela.models` the models, `recgrela.data` the readers and batches, and
`recgrela.Recommender` trains a model and uses it. The commands are `python -m recgrela.train`, `.evaluate`,
`.recommend`, `.export`, `.serve`, `.compare` and `.env`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recgrela.inference.recommender import Recommender as Recommender
else:

    def __getattr__(name: str) -> object:
        """Imports `Recommender` on its first use, so that `import recgrela` stays cheap."""
        if name != "Recommender":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from recgrela.inference.recommender import Recommender

        return Recommender


__version__ = "0.1.0"
__all__ = ["Recommender"]
