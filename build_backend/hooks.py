"""The PEP 517 and PEP 660 hooks: setuptools' own, and what a build requires besides.

An isolated build uses the torch of the environment that the package is installed into, where there is one
of 2.10 or newer, and requires one only where there is none; likewise nvcc, where CUDA is wanted.
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

if int(setuptools.__version__.split(".")[0]) < 77:  # an older one does not read pyproject.toml's license
    raise BuildError(
        f"setuptools {setuptools.__version__} is too old",
        "pip install 'setuptools>=77' pybind11 ninja, or build with isolation",
    )


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """torch and nvcc, where they are wanted and absent."""
    return requirements()


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """The same as of a wheel."""
    return requirements()


def get_requires_for_build_sdist(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Nothing: no source is compiled."""
    return []
