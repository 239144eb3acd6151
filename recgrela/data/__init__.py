"""Data: readers of file formats, filter and order, packed interactions, batches."""

from __future__ import annotations

from recgrela.data.batch import Batch
from recgrela.data.batches import EvalBatches, TrainBatches
from recgrela.data.interactions import Interactions
from recgrela.data.load import load, load_table
from recgrela.settings.data import DataConfig

__all__ = ["Batch", "DataConfig", "EvalBatches", "Interactions", "TrainBatches", "load", "load_table"]
