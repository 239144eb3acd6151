"""Functions of tensors that run as CUDA graphs, one graph for each set of shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from recgrela.system.errors import RunError

Capture = Callable[[Callable[[], None]], Callable[[], None]]
Function = Callable[..., "Tensor | None"]


class CudaGraphs:
    """Captures functions as CUDA graphs that share one memory pool.

    A result in the pool must be read before the next replay of any graph, which can overwrite it.

    Args:
        device: the device of the functions' tensors, which need not be PyTorch's current device.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        # PyTorch's own stream for captures is on the device that was current at the first capture.
        self._stream = torch.cuda.Stream(device)

    def __call__(self, body: Callable[[], None]) -> Callable[[], None]:
        """Captures the kernels of `body` without running them; returns a function that launches them.

        Raises:
            RunError: the kernels cannot be captured, or memory runs out.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, such as the one that watches NCCL, may call CUDA during the capture.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                body()
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of a failed capture raises an error of its own
            raise RunError(
                f"no CUDA graph can be captured: {str(cause).splitlines()[0]}; use --train.cuda_graphs false"
            ) from error
        return graph.replay


class GraphedFunction:
    """Runs a function of tensors, as one CUDA graph for shapes that it was called with before.

    Captured or not, a call computes the same bits: it launches the same kernels, and random numbers continue
    PyTorch's generator of the device, whose offset a replay advances as far as the kernels in it would. So
    results do not depend on which calls are captured, and a resumed run repeats an uninterrupted one.

    Args:
        function: takes tensors and returns a tensor or None. It must neither wait for the device nor copy
            from the host, and may read and write only tensors that exist as long as this object.
        device: the device of the tensors.
        capture: turns a function into its replay, such as a `CudaGraphs`.
    """

    MAX_GRAPHS = 16  # a graph of a model holds megabytes, and takes longer to capture than a call
    WARM_UP = 3  # calls that load kernels and allocate what stays, such as the state of an optimizer

    def __init__(self, function: Function, device: torch.device, capture: Capture) -> None:
        self._function, self._capture = function, capture
        self._graphs: dict[tuple[torch.Size, ...], _Graph] = {}
        self._known: set[tuple[torch.Size, ...]] = set()
        self._calls = 0
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, *inputs: Tensor) -> Tensor | None:
        shapes = tuple(x.shape for x in inputs)
        self._calls += 1
        if shapes in self._graphs:
            return self._graphs[shapes](inputs)
        # The first call of a shape loads kernels and compiles code, which a capture must not do.
        is_new = shapes not in self._known
        self._known.add(shapes)
        if is_new or self._calls <= self.WARM_UP or len(self._graphs) == self.MAX_GRAPHS:
            with self._aside():
                return self._function(*inputs)
        graph = self._graphs[shapes] = _Graph(self._function, inputs, self._capture)
        return graph(inputs)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """A context of work on a side stream, as PyTorch requires before a capture."""
        if self._side is None:
            yield
            return
        here = torch.cuda.current_stream(self._side.device)
        self._side.wait_stream(here)
        with torch.cuda.stream(self._side):
            yield
        here.wait_stream(self._side)


class _Graph:
    """One captured call, with inputs at fixed addresses."""

    def __init__(self, function: Function, inputs: tuple[Tensor, ...], capture: Capture) -> None:
        self._function = function
        self._inputs = [x.clone() for x in inputs]
        self._output: Tensor | None = None
        self._replay = capture(self._run)

    def _run(self) -> None:
        self._output = self._function(*self._inputs)

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor | None:
        for static, x in zip(self._inputs, inputs, strict=True):
            static.copy_(x)
        self._replay()
        return None if self._output is None else self._output.clone()
