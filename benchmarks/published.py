"""The published model and its data pipeline in plain PyTorch, as an experienced user would write them.

Every sequence is padded to the full length, every position is computed in every block, the scores of all rows
are held at once, and batches come from a DataLoader. The parameters have the names of recgrela's model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from python_tests.cases.gated_rela import gated
from recgrela.data import Interactions
from recgrela.data.users import train_counts
from recgrela.ops import rotary_table

DIM, HEADS, BLOCKS, KERNEL_SIZE, DROPOUT = 64, 4, 4, 4, 0.1


class Attention(nn.Module):
    def __init__(self, form: Callable[..., Tensor]) -> None:
        super().__init__()
        self.form = form
        self.gate_proj, self.in_proj = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.qk_proj = nn.Linear(DIM, 2 * DIM)
        self.conv = nn.Conv1d(DIM, DIM, KERNEL_SIZE, groups=DIM)
        self.out_proj = nn.Linear(DIM, DIM)

    def forward(self, u: Tensor, rotary: Tensor) -> Tensor:
        v = self.in_proj(u)
        q, k = self.qk_proj(v).chunk(2, dim=-1)
        weight, bias = self.conv.weight.squeeze(1), self.conv.bias
        y = gated(self.form, q, k, v, self.gate_proj(u), rotary, weight, bias, HEADS)
        return self.out_proj(y)


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.gelu(self.fc1(x)), DROPOUT, self.training)
        return F.dropout(self.fc2(x), DROPOUT, self.training)


class Block(nn.Module):
    def __init__(self, form: Callable[..., Tensor]) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM, eps=1e-12), nn.LayerNorm(DIM, eps=1e-12)
        self.attention, self.mlp = Attention(form), MLP()

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        y = self.attention(self.norm1(x), rotary)
        if self.training:  # DropPath
            y = y * (torch.rand(len(y), 1, 1, device=y.device) >= DROPOUT) / (1 - DROPOUT)
        x = x + y
        return x + self.mlp(self.norm2(x))


class Published(nn.Module):
    """The model.

    Args:
        form: a form of the attention, one of python_tests.cases.gated_rela.ATTENTION.
        n_items: number of items, including the padding item 0.
        max_len: length of every sequence.
    """

    def __init__(self, form: Callable[..., Tensor], n_items: int, max_len: int) -> None:
        super().__init__()
        self.item_embedding = nn.Embedding(n_items, DIM, padding_idx=0)
        self.norm = nn.LayerNorm(DIM, eps=1e-12)
        self.blocks = nn.ModuleList(Block(form) for _ in range(BLOCKS))
        self.register_buffer("rotary", rotary_table(max_len, DIM), persistent=False)

    def hidden(self, item_seq: Tensor) -> Tensor:
        """[B, L] -> [B, L, D]."""
        x = self.norm(F.dropout(self.item_embedding(item_seq), DROPOUT, self.training))
        for block in self.blocks:
            x = block(x, self.rotary)
        return x

    def loss_last(self, item_seq: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of the item after each right-padded sequence; takes [B, L], [B] and [B]."""
        last = self.hidden(item_seq)[torch.arange(len(lengths), device=lengths.device), lengths - 1]
        return F.cross_entropy(last @ self.item_embedding.weight.T, target)

    def loss_all(self, item_seq: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of the next item at every position; takes [B, L] twice and ignores targets of 0."""
        scores = self.hidden(item_seq).flatten(0, 1) @ self.item_embedding.weight.T
        return F.cross_entropy(scores, target.flatten(), ignore_index=0)


class Prefixes(Dataset):
    """Every prefix of a user's training events, padded, and the item after it."""

    def __init__(self, data: Interactions, max_len: int) -> None:
        self.items, self.max_len = data.items.long(), max_len
        offsets = data.host_offsets()
        counts = train_counts(offsets[1:] - offsets[:-1])
        self.samples = [
            (start, start + end) for start, n in zip(offsets, counts, strict=False) for end in range(1, n)
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        start, end = self.samples[index]
        window = self.items[max(start, end - self.max_len) : end]
        return F.pad(window, (0, self.max_len - len(window))), len(window), self.items[end]


class Windows(Dataset):
    """Windows of a user's training events, padded, and the item after each of their items."""

    def __init__(self, data: Interactions, max_len: int) -> None:
        self.items, self.max_len = data.items.long(), max_len
        offsets = data.host_offsets()
        counts = train_counts(offsets[1:] - offsets[:-1])
        self.windows = [
            (start + begin, start + min(begin + max_len, n - 1))
            for start, n in zip(offsets, counts, strict=False)
            for begin in range(0, n - 1, max_len)
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        begin, end = self.windows[index]
        padding = (0, self.max_len - (end - begin))
        return F.pad(self.items[begin:end], padding), F.pad(self.items[begin + 1 : end + 1], padding)
