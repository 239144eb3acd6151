"""Arrays computed with the authors' code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# A small RecGRELA of two blocks, from its formulas; see golden/make_recgrela.py.
TINY = Path(__file__).parents[1] / "golden" / "recgrela_tiny.npz"


def tensors_of(z: Any, prefix: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The arrays whose names start with `prefix`, complex ones in the complex dtype of the same precision."""
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    tensors = {k[len(prefix) :]: torch.tensor(z[k]) for k in z.files if k.startswith(prefix)}
    return {k: x.to(complex_dtype if x.is_complex() else dtype) for k, x in tensors.items()}


def settings_of(z: Any) -> dict[str, Any]:
    return {k[len("config.") :]: z[k].item() for k in z.files if k.startswith("config.")}


def tiny_state() -> dict[str, Tensor]:
    """The parameters of TINY, under the authors' names."""
    return tensors_of(np.load(TINY), "param.")
