"""Lack of memory as one line that says what was being done and which settings need less."""

from __future__ import annotations

import errno
import re
import traceback
from contextlib import ContextDecorator
from types import TracebackType

import torch

from recgrela.system.errors import OutOfMemory, UserError
from recgrela.system.memory import available_memory, in_gb

# Words that allocators and the system write into exceptions. Most are RuntimeErrors of PyTorch's CPU
# allocator and of C++ code, or ImportErrors of libraries that are loaded late.
_SIGNS = re.compile(
    "out of memory|not enough memory|bad_alloc|can.?t allocate memory|cannot allocate|unable to allocate|"
    "failed to map segment|can.?t start new thread|cannot create thread|alloc_failed|memory allocation of|"
    "failed to launch worker thread|failed to allocate|insufficient memory|malloc of size|realloc of size|"
    "errno 12\\b|os error 12\\b",
    re.IGNORECASE,
)
_ASKED = re.compile(
    r"(?:allocate|requested|size|allocation of)\s+(\d+(?:\.\d*)?)\s*(bytes|[KMGTPE]iB)?", re.IGNORECASE
)
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "pib": 2**50, "eib": 2**60}
_CPU = torch.device("cpu")
# Python's import loses a MemoryError: it reports a name that is missing, or an error without an exception.
_NEEDED_FOR_IMPORTS = 64 << 20


class MemoryPhase(ContextDecorator):
    """A context, or a decorator, that turns a lack of memory into OutOfMemory.

    Contexts may be nested, and the innermost one names what was being done. The frames of the failed calls
    are cleared, so that their tensors are freed. A context can be entered any number of times.

    Args:
        doing: what is done, such as "reading the data".
        helps: what the user can do, "lower ... or raise ...".
    """

    def __init__(self, doing: str, helps: str) -> None:
        self.doing, self.helps = doing, helps

    def __enter__(self) -> MemoryPhase:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OutOfMemory) or not isinstance(error, Exception):
            return
        lack = _lack(error)
        if lack is not None:
            message = self._describe(lack)
            traceback.clear_frames(trace)
            raise OutOfMemory(message) from None

    def _describe(self, lack: BaseException) -> str:
        is_cuda = isinstance(lack, torch.OutOfMemoryError) or "CUDA out of memory" in str(lack)
        on_gpu = is_cuda and torch.cuda.is_available()
        facts = ""
        asked = _asked(str(lack))
        if asked is not None:
            facts = f": {in_gb(asked)} more were asked for"
            available = available_memory(torch.device("cuda") if on_gpu else _CPU)
            if available is not None and available < asked:
                facts += f", and {in_gb(available)} are available"
        where = "GPU memory" if on_gpu else "memory"
        return f"out of {where} while {self.doing}{facts}; {self.helps}"


def _lack(error: Exception) -> BaseException | None:
    """The lack of memory that an error reports or was raised from; None for another error.

    A UserError counts only through the error that it was raised from or while handling: its own text may
    quote names and values of the user.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, MemoryError | torch.OutOfMemoryError):
            return found
        if isinstance(found, OSError) and found.errno == errno.ENOMEM:
            return found
        if isinstance(found, ImportError | SystemError) and _cannot_import():
            return found
        if _is_of_library(found) and _SIGNS.search(str(found)):
            return found
        # `from None` hides what an error was raised while handling, except in ours, where it only shortens.
        hides = found.__suppress_context__ and not isinstance(found, UserError)
        found = found.__cause__ or (None if hides else found.__context__)
    return None


def _is_of_library(error: BaseException) -> bool:
    """Whether an error is of a kind by which libraries report a lack of memory in words.

    Errors of Python, such as KeyError and OSError, quote names and values instead.
    """
    return type(error) in (RuntimeError, SystemError, ImportError) or not type(error).__module__.startswith(
        ("builtins", "recgrela")
    )


def _cannot_import() -> bool:
    available = available_memory(_CPU)
    return available is not None and available < _NEEDED_FOR_IMPORTS


def _asked(text: str) -> float | None:
    """The size in an allocator's message, in bytes."""
    match = _ASKED.search(text)
    return float(match[1]) * _UNITS[(match[2] or "bytes").lower()] if match else None
