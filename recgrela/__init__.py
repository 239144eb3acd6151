"""Gated rotary-enhanced linear attention for long-sequence recommendation.

`recgrela.ops` has the operators, `recgrela.models` the models, `recgrela.data` the readers and batches;
`python -m recgrela.train`, `.evaluate`, `.recommend` and `.env` are the commands.
"""

__version__ = "0.1.0"
