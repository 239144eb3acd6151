"""An index of a catalogue: the k items with the highest scores for each query, exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recgrela.ops.checks import HALF
from recgrela.retrieval import composition, kernel
from recgrela.retrieval.reference import items_and_scores
from recgrela.system.errors import RunError

PRECISIONS = ("float32", "int8")
MAX_ITEMS, MAX_DIM = 2**31 - 1, 1 << 16
# Bounds on norms and scores that keep every intermediate result in the range of float32.
MAX_NORM, MAX_SCORE = 2.0**100, 2.0**120


class ItemIndex:
    """The items of a catalogue, searched by inner product: score = query . weight[item] + bias[item].

    The search is exact: it returns the items that sorting all scores would, with both precisions, on every
    device and with any number of threads, and the same bits of the scores. A score is computed in float64
    from the float32 row and rounded to float32.

    Args:
        weight: [N, D] float32, float16 or bfloat16, the rows of the items; row 0 is padding and is never
            returned. Contiguous float32 rows are not copied.
        bias: [N] of the same dtypes, or None.
        precision: format of the rows that the CPU kernel reads first. "int8" adds D + 8 bytes per item and
            reads a quarter of the memory of "float32"; only the few items whose bound reaches the k-th best
            score are then read in float32. Other devices read the float32 rows and store nothing else.

    Attributes:
        n_items, dim: N and D.
        precision: as given.

    Raises:
        ValueError: if a shape, a device or the precision is wrong, or a number is not finite or so large that
            scores could leave the range of float32; TypeError: if a dtype is wrong.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, precision: str = "float32") -> None:
        if precision not in PRECISIONS:
            raise ValueError(
                f"ItemIndex: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}"
            )
        if weight.dim() != 2 or 0 in weight.shape or weight.shape[0] > MAX_ITEMS or weight.shape[1] > MAX_DIM:
            raise ValueError(
                f"ItemIndex: weight must be [N, D] with 1 .. {MAX_ITEMS} rows of 1 .. {MAX_DIM} elements, "
                f"got shape {tuple(weight.shape)}"
            )
        self.n_items, self.dim = weight.shape
        self.precision = precision
        if bias is not None and bias.shape != (self.n_items,):
            raise ValueError(f"ItemIndex: bias must be [{self.n_items}], got shape {tuple(bias.shape)}")
        if bias is not None and bias.device != weight.device:
            raise ValueError(
                f"ItemIndex: bias is on {bias.device}, weight on {weight.device}; they must agree"
            )
        self._given = [(x, _version(x)) for x in (weight, bias) if x is not None]
        self._weight = _float32("weight", weight.detach())
        self._bias = None if bias is None else _float32("bias", bias.detach())
        norms = _norms(self._weight)
        self._max_norm = float(norms.max())
        self._max_bias = 0.0 if self._bias is None else float(self._bias.abs().max())
        # A comparison with NaN is false.
        if not self._max_norm <= MAX_NORM:
            raise ValueError(f"ItemIndex: weight has NaN, infinite or too large elements; {_first(norms)}")
        if not self._max_bias <= MAX_SCORE:
            assert self._bias is not None
            raise ValueError(f"ItemIndex: bias has NaN, infinite or too large elements; {_first(self._bias)}")

        # The kernel reads bounds of blocks of rows, the composition those of rows.
        self._table: kernel.Table | None = None
        self._norms: Tensor | None = None
        if weight.device.type != "cpu":
            self._norms = norms
        elif precision == "int8":
            self._table = kernel.int8_table(self._weight, norms, self._bias)
        else:
            self._table = kernel.float32_table(norms, self._bias)

    @property
    def device(self) -> torch.device:
        """The device of the rows."""
        return self._weight.device

    @property
    def nbytes(self) -> int:
        """Bytes of the index, including the float32 rows and the bias."""
        tensors = [self._weight, *filter(torch.is_tensor, (self._bias, self._norms))]
        tensors += [] if self._table is None else self._table.tensors()
        return sum(x.numel() * x.element_size() for x in tensors)

    @torch.no_grad()
    def search(
        self,
        queries: Tensor,
        k: int,
        excluded: tuple[Tensor, Tensor] | None = None,
        allowed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The k items with the highest scores for each query.

        Args:
            queries: [B, D] float32, float16 or bfloat16.
            k: number of items, at least 1; may exceed the number of items.
            excluded: (items int64 [S], cu_excluded int32 or int64 [B + 1]), items that query b must not
                return: items[cu_excluded[b] : cu_excluded[b + 1]]. None: none.
            allowed: bool [N], the items that may be returned; None: all.

        Returns:
            items, int64 [B, k], and scores, float32 [B, k]: best first, equal scores by smaller item id.
            Places without an item have item 0 and score -inf.

        Raises:
            ValueError: if a shape, a device, an item id or k is wrong, or a query is not finite or so large
                that scores could leave the range of float32; TypeError: if a dtype is wrong.
            RunError: if `weight` or `bias` has been changed in place since the index was built.
        """
        if any(_version(x) != version for x, version in self._given):
            raise RunError(
                "ItemIndex: the item table has changed since the index was built; build a new index"
            )
        queries = self._check_queries(queries)
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"ItemIndex.search: k must be an integer of at least 1, got {k!r}")
        if excluded is not None:
            self._check_excluded(*excluded, queries.shape[0])
        if allowed is not None:
            _check("allowed", allowed, (self.n_items,), (torch.bool,), self.device)
        if self._table is not None:
            return kernel.search(queries, self._weight, self._bias, self._table, k, excluded, allowed)
        assert self._norms is not None
        keys = composition.search(queries, self._weight, self._norms, self._bias, k, excluded, allowed)
        return items_and_scores(keys)

    def _check_queries(self, queries: Tensor) -> Tensor:
        if queries.dim() != 2 or queries.shape[1] != self.dim:
            raise ValueError(
                f"ItemIndex.search: queries must be [B, {self.dim}], got shape {tuple(queries.shape)}"
            )
        if queries.device != self.device:
            raise ValueError(f"ItemIndex.search: queries are on {queries.device}, the index on {self.device}")
        queries = _float32("queries", queries)
        if queries.shape[0] == 0:
            return queries
        norm = float(torch.linalg.vector_norm(queries, torch.inf)) * math.sqrt(self.dim)  # an upper bound
        if not (norm <= MAX_NORM and norm * self._max_norm <= MAX_SCORE):
            raise ValueError(
                "ItemIndex.search: queries have NaN, infinite or too large elements; "
                f"{_first(torch.linalg.vector_norm(queries.double(), dim=1))}"
            )
        return queries

    def _check_excluded(self, items: Tensor, offsets: Tensor, size: int) -> None:
        _check("excluded items", items, (items.numel(),), (torch.int64,), self.device)
        _check("cu_excluded", offsets, (size + 1,), (torch.int32, torch.int64), self.device)
        if int(offsets[0]) != 0 or int(offsets[-1]) != len(items) or bool((offsets.diff() < 0).any()):
            raise ValueError(
                f"ItemIndex.search: cu_excluded must start at 0, not decrease and end at {len(items)}, the "
                "number of excluded items"
            )
        if len(items) and not 0 <= int(items.min()) <= int(items.max()) < self.n_items:
            raise ValueError(
                f"ItemIndex.search: excluded items must be within 0 .. {self.n_items - 1}, got "
                f"{int(items.min())} .. {int(items.max())}"
            )


def _version(x: Tensor) -> int:
    """A number that changes when a tensor is changed in place; inference tensors do not count changes."""
    return 0 if x.is_inference() else x._version


def _float32(name: str, x: Tensor) -> Tensor:
    if x.dtype != torch.float32 and x.dtype not in HALF:
        raise TypeError(
            f"ItemIndex: {name} must be float32, float16 or bfloat16, got {x.dtype}; convert it first"
        )
    return x.float().contiguous()


def _norms(weight: Tensor) -> Tensor:
    """Upper bounds of the norms of rows, float32 [N], computed in blocks of rows."""
    norms = weight.new_empty(weight.shape[0])
    block = max(1, composition.max_numbers_of(weight.device) // weight.shape[1])
    for start in range(0, weight.shape[0], block):
        rows = weight[start : start + block].double()
        norms[start : start + block] = torch.linalg.vector_norm(rows, dim=1) * (1 + composition.ROUNDING)
    return norms.clamp_(min=composition.TINY)  # NaN stays NaN


def _first(values: Tensor) -> str:
    """Names the row of the first NaN or, if there is none, of the largest magnitude."""
    row = int(values.abs().argmax())  # NaN counts as the largest
    return (
        f"row {row} is the first"
        if values[row].isnan()
        else f"row {row} has the magnitude {float(values[row]):.3g}"
    )


def _check(
    name: str, x: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    if x.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"ItemIndex.search: {name} must be {names}, got {x.dtype}")
    if x.shape != shape:
        raise ValueError(f"ItemIndex.search: {name} must be {list(shape)}, got shape {tuple(x.shape)}")
    if x.device != device:
        raise ValueError(f"ItemIndex.search: {name} must be on {device} like the index, got {x.device}")
