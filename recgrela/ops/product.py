"""Matrix products of shapes that come again and again, by the faster of PyTorch's two CPU libraries.

In float32 PyTorch takes MKL, which uses half of the vector width on processors that are not Intel's; oneDNN,
which it carries too, compiles its kernels for the processor at hand. It does so again for every new shape,
which takes as long as a small product.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops.checks import autocast_enabled


def _takes_onednn(x: Tensor) -> bool:
    return bool(
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and type(x)
        in (Tensor, torch.nn.Parameter)  # no traced or fake tensor: a compiler has its own kernels
        and x.numel() > 0
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not autocast_enabled("cpu")
    )


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a @ b.T + bias, without autograd.

    Args:
        a: [M, K]; b: [N, K]; bias: [N] or None. Any strides; one dtype and device.

    Returns:
        [M, N].
    """
    if _takes_onednn(a) and b.numel() > 0:
        return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return F.linear(a, b, bias)
