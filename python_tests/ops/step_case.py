"""Calls of the ops that advance states by one row, shared by their tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from recgrela import ops
from recgrela.ops import RelaState
from recgrela.ops.checks import state_dtype

Tensors = dict[str, Tensor]


@dataclass
class Step:
    """A call of an op in place.

    Attributes:
        name: the op's name.
        rows: operands with one row of each sequence, by name; None stands for an absent one.
        parameters: operands that sequences share.
        state: the tensors that are updated, by name.
        options: other arguments.
    """

    name: str
    rows: dict[str, Tensor | None]
    parameters: dict[str, Tensor | None]
    state: Tensors
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def rows_dtype(self) -> torch.dtype:
        return next(x.dtype for x in self.rows.values() if x is not None)

    def arguments(self) -> tuple[Any, ...]:
        """The arguments of the operator in torch.ops.recgrela."""
        match self.name:
            case "causal_conv1d_step":
                silu = self.options["activation"] == "silu"
                return *self.rows.values(), *self.parameters.values(), *self.state.values(), silu
            case "selective_scan_step":
                operands = self.rows | self.parameters
                names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
                options = self.options.values()
                return *(operands[n] for n in names), *self.state.values(), *options
            case "gated_rela_step":
                operands = *self.rows.values(), *self.state.values(), *self.parameters.values()
                return *operands, self.options["num_heads"], 1e-6
            case "rela_block_step":
                rela = ("turns", "conv_weight", "conv_bias")
                block = (x for n, x in self.parameters.items() if n not in rela)
                operands = (
                    *self.rows.values(),
                    *self.state.values(),
                    *block,
                    *(self.parameters[n] for n in rela),
                )
                return *operands, self.options["num_heads"], 1e-6, 1e-12, self.options["activation"]
        raise ValueError(f"{self.name} has no operator")

    def copy(self, dtype: torch.dtype | None = None, device: str | None = None) -> Step:
        """A copy; its rows may have another dtype, and all operands may be on another device."""

        def convert(x: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
            if x is None or not (x.is_floating_point() or x.is_complex()):
                return x if x is None else x.to(device=device, copy=True)
            dtype = dtype.to_complex() if dtype and x.is_complex() else dtype
            return x.to(device=device, dtype=dtype, copy=True)

        wide = None if dtype is None else state_dtype(dtype)
        return replace(
            self,
            rows={n: convert(x, dtype) for n, x in self.rows.items()},
            parameters={n: convert(x, wide) for n, x in self.parameters.items()},
            state={n: convert(x, dtype if n == "history" else wide) for n, x in self.state.items()},
        )

    def call(self, op: Callable[..., Tensor] | None = None) -> Tensor:
        """y; updates the state."""
        op = op or getattr(ops, self.name)
        state = {"state": RelaState(**self.state)} if "position" in self.state else self.state
        return op(**self.rows, **self.parameters, **state, **self.options)

    def results(self, op: Callable[..., Tensor] | None = None) -> Tensors:
        """y and the state after a call, which leaves this one's state as it is."""
        step = self.copy()
        return {"y": step.call(op), **step.state}

    def reference(self) -> Tensors:
        """`results` of the op's definition."""
        return self.results(getattr(ops, f"{self.name}_reference"))

    def whole(self) -> Tensors:
        """`results` by the op of whole sequences, of one row each."""
        x = self.copy()
        options = x.rows | x.parameters | x.options
        batch = len(next(t for t in self.rows.values() if t is not None))
        options["cu_seqlens"] = torch.arange(batch + 1)
        match self.name:
            case "causal_conv1d_step":
                options |= {"initial_history": x.state["history"], "return_final_history": True}
                y, history = ops.causal_conv1d(**options)
                return {"y": y, "history": history}
            case "linear_scan_step":
                y, state = ops.linear_scan(**options, initial_state=x.state["state"], return_state=True)
                return {"y": y, "state": state}
            case "selective_scan_step":
                y, state = ops.selective_scan(**options, initial_state=x.state["state"], return_state=True)
                return {"y": y, "state": state}
        options |= {"causal": True, "initial_state": RelaState(**x.state), "return_state": True}
        turns = options.pop("turns")
        if turns is not None:
            length, dtype = max(x.state["position"].tolist(), default=0) + 1, x.state["kv_state"].dtype
            options["rotary"] = ops.rotary_table(length, 2 * turns.shape[0], dtype=dtype)
        y, final = (ops.gated_rela if self.name == "gated_rela_step" else whole_block)(**options)
        return {"y": y, **final._asdict()}


def whole_block(
    x: Tensor, *, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str, **operands: Any
) -> tuple[Tensor, RelaState]:
    """A RecGRELA block by the ops of whole sequences."""
    layers = {n: tuple(operands.pop(f"{n}_{p}") for p in ("weight", "bias")) for n in LAYERS}
    x, v, gate, qk = ops.rela_projections(x, *layers["norm1"], *layers["in"], *layers["gate"], *layers["qk"])
    y, state = ops.gated_rela(qk, None, v, gate, **operands)
    y = torch.nn.functional.linear(y, *layers["out"])
    return ops.mlp_block(x, y, *layers["norm2"], w1, b1, w2, b2, activation=activation), state


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def conv(
    batch: int, channels: int = 24, kernel_size: int = 4, *, bias: bool = True, silu: bool = True
) -> Step:
    return Step(
        "causal_conv1d_step",
        {"x": normal(batch, channels)},
        {"weight": normal(channels, kernel_size), "bias": normal(channels) if bias else None},
        {"history": normal(batch, kernel_size - 1, channels)},
        {"activation": "silu" if silu else None},
    )


def scan(
    batch: int, channels: int = 24, *, per_row: bool = False, dtype: torch.dtype = torch.float64
) -> Step:
    a = 0.5 * normal(*([batch] if per_row else []), channels, dtype=dtype)
    rows = {"x": normal(batch, channels, dtype=dtype)}
    return Step("linear_scan_step", rows, {"a": a}, {"state": normal(batch, channels, dtype=dtype)})


def selective(
    batch: int,
    channels: int = 24,
    num_states: int = 16,
    *,
    without: tuple[str, ...] = (),
    softplus: bool = True,
) -> Step:
    rows: dict[str, Tensor | None] = {n: normal(batch, channels) for n in ("u", "delta", "z")}
    rows |= {n: normal(batch, num_states) for n in ("B", "C")}
    parameters: dict[str, Tensor | None] = {"A": -torch.rand(channels, num_states, dtype=torch.float64)}
    parameters |= {"D": normal(channels), "delta_bias": normal(channels)}
    if not softplus:
        rows["delta"], parameters["delta_bias"] = rows["delta"].abs(), parameters["delta_bias"].abs()
    for name in without:
        (rows if name in rows else parameters)[name] = None
    state = {"state": normal(batch, channels, num_states)}
    return Step("selective_scan_step", rows, parameters, state, {"delta_softplus": softplus})


LAYERS = ("norm1", "in", "gate", "qk", "out", "norm2")


def rela(
    batch: int,
    head_dim: int = 8,
    num_heads: int = 3,
    *,
    kernel_size: int = 4,
    gate: bool = True,
    rotary: bool = True,
    joined: bool = False,
    last_position: int = 50,
) -> Step:
    width = head_dim * num_heads
    rows: dict[str, Tensor | None] = {n: normal(batch, width) for n in ("q", "k", "v", "g")}
    if joined:
        rows |= {"q": normal(batch, 2 * width), "k": None}
    if not gate:
        rows["g"] = None
    with_conv = kernel_size > 0
    parameters = {
        "turns": ops.rotary_turns(width) if rotary else None,
        "conv_weight": normal(width, kernel_size) if with_conv else None,
        "conv_bias": normal(width) if with_conv else None,
    }
    state = {
        "kv_state": torch.rand(batch, num_heads, head_dim + 1, head_dim, dtype=torch.float64),
        "history": normal(batch, max(kernel_size - 1, 0), width),
        "position": torch.randint(0, last_position + 1, (batch,)),
    }
    return Step("gated_rela_step", rows, parameters, state, {"num_heads": num_heads})


def block(
    batch: int,
    head_dim: int = 8,
    num_heads: int = 3,
    *,
    hidden: int = 40,
    activation: str = "gelu",
    gate: bool = True,
    **options: Any,
) -> Step:
    step, d = rela(batch, head_dim, num_heads, gate=gate, **options), head_dim * num_heads

    def weight(rows: int, columns: int) -> Tensor:
        return normal(rows, columns) / columns**0.5

    layers = {n: (normal(d), normal(d)) if "norm" in n else (weight(d, d), normal(d)) for n in LAYERS}
    layers["qk"] = weight(2 * d, d), normal(2 * d)
    parameters = {
        f"{n}_{p}": x for n, pair in layers.items() for p, x in zip(("weight", "bias"), pair, strict=True)
    }
    if not gate:
        parameters |= {"gate_weight": None, "gate_bias": None}
    parameters |= {"w1": weight(hidden, d), "b1": normal(hidden), "w2": weight(d, hidden), "b2": normal(d)}
    return Step(
        "rela_block_step",
        {"x": normal(batch, d)},
        parameters | step.parameters,
        step.state,
        step.options | {"activation": activation},
    )


EXAMPLES: dict[str, Callable[[int], Step]] = {
    "causal_conv1d_step": conv,
    "linear_scan_step": scan,
    "selective_scan_step": selective,
    "gated_rela_step": rela,
    "rela_block_step": block,
}
# Every mode of every op, and odd sizes.
VARIANTS: dict[str, Callable[[], Step]] = {
    "conv": lambda: conv(5),
    "conv, kernel size 1": lambda: conv(5, kernel_size=1),
    "conv, kernel size 2": lambda: conv(5, 33, 2, bias=False),
    "conv, kernel size 7": lambda: conv(2, 1, 7, silu=False),
    "conv, many": lambda: conv(300, 65),
    "scan": lambda: scan(5),
    "scan, coefficients of each row": lambda: scan(5, per_row=True),
    "scan, complex": lambda: scan(5, dtype=torch.complex128, per_row=True),
    "selective": lambda: selective(5),
    "selective, one state": lambda: selective(3, 7, 1),
    "selective, 5 states": lambda: selective(3, 33, 5, without=("z",)),
    "selective, 40 states": lambda: selective(3, 7, 40, without=("D", "delta_bias")),
    "selective, 257 states": lambda: selective(3, 2, 257),
    "selective, no softplus": lambda: selective(2, softplus=False),
    "selective, many": lambda: selective(130, 20, 16),
    "rela": lambda: rela(5, 16, 4),
    "rela, q and k side by side": lambda: rela(5, joined=True),
    "rela, heads of 2": lambda: rela(3, 2, 1),
    "rela, heads of 6": lambda: rela(3, 6, 2, kernel_size=1),
    "rela, heads of 32": lambda: rela(2, 32, 2, gate=False),
    "rela, heads of 64": lambda: rela(2, 64, 1, kernel_size=0),
    "rela, heads of 128": lambda: rela(2, 128, 2, rotary=False),
    "rela, kernel size 6": lambda: rela(2, kernel_size=6),
    "rela, bare": lambda: rela(2, kernel_size=0, gate=False, rotary=False),
    "rela, many": lambda: rela(200, 8, 2),
    "block": lambda: block(5, 16, 4, hidden=256),
    "block, heads of 2": lambda: block(3, 2, 1, hidden=1, activation="relu"),
    "block, heads of 6": lambda: block(1, 6, 3, hidden=33, activation="silu", kernel_size=1),
    "block, heads of 32": lambda: block(2, 32, 1, hidden=7, gate=False, activation="none"),
    "block, bare": lambda: block(9, kernel_size=0, gate=False, rotary=False),
    "block, many": lambda: block(128, 8, 2),
    "block, too many for the kernel": lambda: block(129, 8, 2),
}
