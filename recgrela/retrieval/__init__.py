"""Exact search of the items with the highest inner products in a large catalogue.

It knows tensors only: a table of items, a bias and queries. No module of this package knows models.
"""

from recgrela.retrieval.index import ItemIndex
from recgrela.retrieval.reference import top_k_reference

__all__ = ["ItemIndex", "top_k_reference"]
