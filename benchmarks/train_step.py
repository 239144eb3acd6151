"""A training step of the published model, objective "all", against the same model on eager PyTorch ops.

Eager means torch's own MLP, dropout and cross-entropy and the faster plain form of the attention op.

python benchmarks/train_step.py [--batch 32 --length 200 --items 3417 --threads 2 --rounds 15]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import eager
import torch
import torch.nn.functional as F
from timing import gate, medians, record
from torch import Tensor

from recgrela.models import RecGRELAConfig, build
from recgrela.nn import Dropout
from recgrela.ops import linear_cross_entropy_reference


@contextmanager
def eager_ops(form: Callable[..., Tensor], batch: int) -> Iterator[None]:
    """The model's ops replaced by plain PyTorch, for batches of equal lengths."""

    def op(qk: Tensor, k: None, v: Tensor, g: Tensor, cu_seqlens: Tensor, **kw) -> Tensor:
        q, k, v, g = (x.unflatten(0, (batch, -1)) for x in (*qk.chunk(2, dim=-1), v, g))
        table = kw["rotary"]
        return eager.gated_rela(
            form, q, k, v, g, table, kw["conv_weight"], kw["conv_bias"], kw["num_heads"]
        ).flatten(0, 1)

    def dropout(self: Dropout, x: Tensor) -> Tensor:
        return F.dropout(x, self.rate, self.training)

    with (
        mock.patch("recgrela.nn.gated_rela", op),
        mock.patch("recgrela.models.base.linear_cross_entropy", linear_cross_entropy_reference),
        mock.patch.object(Dropout, "forward", dropout),
        mock.patch("recgrela.nn.takes_kernel", lambda x: False),
    ):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("batch", 32), ("length", 200), ("items", 3417), ("threads", 2), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = build(RecGRELAConfig(), args.items, args.length)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    tokens = args.batch * args.length
    items, target = (torch.randint(1, args.items, (tokens,)) for _ in range(2))
    cu_seqlens = torch.arange(args.batch + 1) * args.length

    def backward() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = model.loss_packed(items, cu_seqlens, target, args.length, "all")
        loss.backward()
        return loss.detach()

    def step() -> None:
        backward()
        optimizer.step()

    forms = {f.__name__: f for f in eager.FORMS["causal"]}

    def eager_step(form: Callable[..., Tensor]) -> Callable[[], None]:
        def run() -> None:
            with eager_ops(form, args.batch):
                step()

        return run

    model.eval()  # no dropout: the two must agree
    loss, grads = backward(), [p.grad.clone() for p in model.parameters()]
    errors = []
    for name, form in forms.items():
        with eager_ops(form, args.batch):
            errors.append(gate(f"loss, {name}", backward(), loss, 1e-5))
        whole = torch.cat([p.grad.flatten() for p in model.parameters()])
        errors.append(gate(f"gradient, {name}", whole, torch.cat([g.flatten() for g in grads]), 1e-3))
    model.train()

    seconds = medians({"recgrela": step} | {name: eager_step(f) for name, f in forms.items()}, args.rounds)
    best = min(forms, key=seconds.__getitem__)
    ratio = seconds[best] / seconds["recgrela"]
    print(f"{tokens} tokens, {args.items} items; largest relative error against eager {max(errors):.1e}")
    for name, s in seconds.items():
        print(f"  {name:15s} {1e3 * s:8.1f} ms a step  {tokens / s:10,.0f} tokens/s")
    print(f"  {ratio:.2f} times faster than {best}")
    result = {
        "max_relative_error": max(errors),
        "milliseconds": {name: round(1e3 * s, 1) for name, s in seconds.items()},
        "times_faster_than_the_faster_eager": round(ratio, 2),
    }
    record("train_step", vars(args), [result])


if __name__ == "__main__":
    main()
