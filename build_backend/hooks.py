"""The PEP 517 and PEP 660 hooks: those of setuptools, with additional build requirements.

An isolated build uses the torch of the environment that the package is installed into, and requires one only
if there is none or it is older than 2.10. If CUDA is wanted, the same holds for nvcc.
"""

from __future__ import annotations

from typing import Any

import setuptools
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

from build_backend.errors import BuildError
from build_backend.plan import requirements

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

if int(setuptools.__version__.split(".")[0]) < 77:  # older releases cannot read the license in pyproject.toml
    raise BuildError(
        f"setuptools {setuptools.__version__} is too old",
        "pip install 'setuptools>=77' pybind11 ninja, or build with isolation",
    )


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Returns requirements for torch and nvcc if they are wanted but missing."""
    return requirements()


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Returns the requirements of a wheel."""
    return requirements()


def get_requires_for_build_sdist(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Returns no requirements: an sdist compiles nothing."""
    return []
