"""Gated rotary-enhanced linear attention for long-sequence recommendation.

`recgrela.ops` has the operators, `recgrela.models` the models, `recgrela.data` the readers and batches. The
commands are `python -m recgrela.train`, `.evaluate`, `.recommend`, `.compare` and `.env`.
"""

__version__ = "0.1.0"
