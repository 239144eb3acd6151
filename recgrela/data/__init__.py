"""Data: readers of file formats, filter and order, packed interactions, batches."""

from __future__ import annotations

from recgrela.data.batch import Batch
from recgrela.data.batches import EvalBatches, TrainBatches
from recgrela.data.interactions import Interactions
from recgrela.data.load import discard, load, load_shared, load_table, pack_for_host
from recgrela.data.packed import PackedInteractions, open_packed
from recgrela.data.packing import PackedWriter, write_packed
from recgrela.settings.data import DataConfig

__all__ = [
    "Batch",
    "DataConfig",
    "EvalBatches",
    "Interactions",
    "PackedInteractions",
    "PackedWriter",
    "TrainBatches",
    "discard",
    "load",
    "load_shared",
    "load_table",
    "open_packed",
    "pack_for_host",
    "write_packed",
]
