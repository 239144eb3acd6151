"""Scores of a table's items in blocks of bounded size, and the ranks and best items that they give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

COLUMNS = 64  # a multiple of the columns that a matrix product computes in one way

# The items that are left out of a ranking: (first row, number of rows) -> [B, rows] bool.
Removed = Callable[[int, int], Tensor]


class TargetRanks(NamedTuple):
    """The ranks of targets, with all items ranked and with removed items left out.

    Attributes:
        rank: [2, B] int64: 1 + items with higher scores + other items with an equal score.
        ties: [2, B] int64: other items with an equal score.
        has_nan: [B] bool: whether the score of an item is NaN.
        best: [2, B, k] int64: the k best items, -1 where there are fewer.
    """

    rank: Tensor
    ties: Tensor
    has_nan: Tensor
    best: Tensor


class ScoreBlocks:
    """Scores [B, size] of `size` successive rows of a table at a time.

    Blocks have one shape, so that equal rows have equal scores; the columns after the end of the table are of
    no item. A single block is computed once.

    Args:
        score: the scores of the block that begins at a row, [B, size].
        batch: B.
        rows: number of rows of the table.
        size: number of rows of a block.
        begin: the item of row 0; item 0 is padding, which is not ranked.
    """

    def __init__(
        self, score: Callable[[int], Tensor], batch: int, rows: int, size: int, begin: int = 0
    ) -> None:
        self._score, self.batch, self.rows, self.size, self.begin = score, batch, rows, size, begin
        self._only: Tensor | None = None

    @classmethod
    def of_table(
        cls,
        hidden: Sequence[Tensor],
        table: Tensor,
        bias: Tensor | None,
        size: int,
        begin: int = 0,
    ) -> ScoreBlocks:
        """Products of states and a table.

        Args:
            hidden: states [n, D] of successive sequences, which are multiplied one after the other.
            table: [rows, D].
            bias: [rows], added to the scores, or None.
            size, begin: see above.
        """
        batch, rows = sum(map(len, hidden)), len(table)

        def score(start: int) -> Tensor:
            weight = table[start : start + size]
            missing = size - len(weight)
            if missing:
                weight = F.pad(weight, (0, 0, 0, missing))
            parts = [states @ weight.T for states in hidden]
            scores = parts[0] if len(parts) == 1 else torch.cat(parts)
            if bias is None:
                return scores
            return scores + F.pad(bias[start : start + size], (0, missing))

        return cls(score, batch, rows, size, begin)

    @property
    def starts(self) -> range:
        """The first row of each block."""
        return range(0, self.rows, self.size)

    def scores(self, start: int) -> Tensor:
        """The scores of the block that begins at a row, [B, size]."""
        if len(self.starts) > 1:
            return self._score(start)
        if self._only is None:
            self._only = self._score(start)
        return self._only

    def own(self, target: Tensor) -> Tensor:
        """The score of each sequence's target, [B, 1], from the blocks that have it; 0 if none has.

        Args:
            target: [B] int64, a row of the table, or outside of it.
        """
        own, starts = None, list(self.starts)
        if len(starts) > 1:  # only the blocks of targets
            held = target[(target >= 0) & (target < self.rows)]
            starts = (torch.unique(held // self.size) * self.size).tolist()
        for start in starts:
            scores = self.scores(start)
            inside = (target >= start) & (target < min(start + self.size, self.rows))
            found = scores.gather(1, (target - start).clamp(0, self.size - 1)[:, None])
            own = torch.where(inside[:, None], found, found.new_zeros(()) if own is None else own)
        if own is None:
            own = torch.zeros_like(self._score(0)[:, :1])
        return own

    def counts(self, target: Tensor, own: Tensor, removed: Removed) -> Tensor:
        """How many items are before the target.

        Args:
            target: [B] int64, a row of the table, or outside of it.
            own: [B, 1], the target's score.
            removed: the items that a second ranking leaves out.

        Returns:
            [B, 5] int64, numbers of items other than the target: with a higher score, the same without
            removed items, with an equal score, the same without removed items; and of items whose score is
            NaN.
        """
        total = target.new_zeros(self.batch, 5)
        for start in self.starts:
            total += self._count(self.scores(start), start, target, own, ~removed(start, self.size))
        return total

    def _count(self, scores: Tensor, start: int, target: Tensor, own: Tensor, left: Tensor) -> Tensor:
        """The counts of a block, [B, 5] int64; `left` [B, size] are the items that are not removed."""
        ranked = self._ranked(start, target.device)
        column = (target - start).clamp(0, self.size - 1)[:, None]
        is_here = (target >= start) & (target < min(start + self.size, self.rows))
        is_own = is_here[:, None] & (own == own)  # a NaN is not equal to itself
        own_left = is_own & left.gather(1, column)

        def count(mask: Tensor) -> Tensor:
            return mask.sum(1, dtype=torch.int32).long()

        mask = (scores > own).logical_and_(ranked)
        higher, higher_left = count(mask), count(mask.logical_and_(left))
        mask = (scores == own).logical_and_(ranked)
        equal, equal_left = count(mask), count(mask.logical_and_(left))
        nan = count(scores.isnan().logical_and_(ranked))
        equal, equal_left = equal - is_own[:, 0].long(), equal_left - own_left[:, 0].long()
        counted = (higher, higher_left, equal, equal_left, nan)
        return torch.stack(counted, 1)

    def best(self, k: int, removed: Removed) -> tuple[Tensor, Tensor]:
        """The items with the highest scores, of all items and of those that are not removed.

        Args:
            k: number of items, at least 1.
            removed: the items that the second list leaves out.

        Returns:
            scores [2, B, k] and items [2, B, k] int64, from the highest score; equal scores are in any order,
            and missing items are -1. Scores that are -inf or NaN count as missing.
        """
        found: tuple[Tensor, Tensor] | None = None
        for start in self.starts:
            scores = self.scores(start)
            out = scores.isnan().logical_or_(~self._ranked(start, scores.device))
            parts = []
            for _ in range(2):
                values, places = torch.where(out, -torch.inf, scores).topk(min(k, self.size), 1)
                parts.append((values, torch.where(values == -torch.inf, -1, places + start + self.begin)))
                out.logical_or_(removed(start, self.size))
            values, items = (torch.stack(part) for part in zip(*parts, strict=True))
            if found is not None:
                values, items = torch.cat([found[0], values], 2), torch.cat([found[1], items], 2)
                values, places = values.topk(min(k, values.shape[2]), 2)
                items = items.gather(2, places)
            found = values, items
        if found is None:  # no rows
            empty = self._score(0)[:, :0].expand(2, self.batch, 0)
            found = empty, empty.long()
        missing = k - found[0].shape[2]
        return F.pad(found[0], (0, missing), value=-torch.inf), F.pad(found[1], (0, missing), value=-1)

    def _row(self, start: int, device: torch.device) -> Tensor:
        return torch.arange(start, start + self.size, device=device)

    def _ranked(self, start: int, device: torch.device) -> Tensor:
        """Whether each column of a block is of an item, [size] bool."""
        row = self._row(start, device)
        return (row < self.rows) & (row + self.begin > 0)


def whole_scores(scores: Tensor) -> ScoreBlocks:
    """Scores of all items [B, n_items] as a single block."""
    batch, rows = scores.shape
    return ScoreBlocks(lambda start: scores, batch, rows, rows)


def rank_targets(blocks: ScoreBlocks, target: Tensor, removed: Removed, k: int = 0) -> TargetRanks:
    """The ranks of targets, and the k best items.

    Args:
        blocks: the scores, whose row 0 is the padding item.
        target: [B] int64, each 1 .. rows - 1.
        removed: the items that the second ranking leaves out.
        k: number of items; 0: none.
    """
    higher, higher_left, ties, ties_left, nan = blocks.counts(target, blocks.own(target), removed).unbind(1)
    tied = torch.stack([ties, ties_left])
    best = blocks.best(k, removed)[1] if k else target.new_empty(2, len(target), 0)
    return TargetRanks(1 + torch.stack([higher, higher_left]) + tied, tied, nan > 0, best)


def block_rows(batch: int, rows: int, max_scores: int) -> int:
    """The number of rows of a block for `batch` sequences: all rows, or a multiple of `COLUMNS`."""
    return rows if batch * rows <= max_scores else equal_block_rows(batch, rows, max_scores)


def equal_block_rows(batch: int, rows: int, max_scores: int) -> int:
    """The number of rows of a block, a multiple of `COLUMNS`, with about `max_scores` scores at most."""
    fitting = max_scores // batch // COLUMNS * COLUMNS
    return max(COLUMNS, min(fitting, -(-rows // COLUMNS) * COLUMNS))


def pairs_removed(sequences: Tensor, rows: Tensor, batch: int) -> Removed:
    """The items of pairs are removed.

    Args:
        sequences, rows: [S] int64, a sequence 0 .. batch - 1 and a row of the table, in any order.
        batch: number of sequences.
    """
    one = torch.ones((), dtype=torch.bool, device=rows.device)  # a Python True would be copied from the host

    def removed(start: int, size: int) -> Tensor:
        inside = (rows >= start) & (rows < start + size)
        # One more column takes the pairs of other blocks.
        mask = torch.zeros(batch, size + 1, dtype=torch.bool, device=rows.device)
        mask.index_put_((sequences, torch.where(inside, rows - start, size)), one)
        return mask[:, :-1]

    return removed
