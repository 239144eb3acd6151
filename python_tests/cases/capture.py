"""Captures a case in a CUDA graph."""

from __future__ import annotations

import torch
from torch import Tensor

from python_tests.cases.case import Case, Operands


def replay(case: Case, captured: Operands, fresh: Operands) -> dict[str, Tensor]:
    """Captures a graph on `captured`, copies `fresh` into these operands, and returns the replayed results.

    Raises:
        RuntimeError: forward or backward waits for the device, so that it cannot be captured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            case.results(captured)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = case.results(captured)
    with torch.no_grad():
        for ours, others in ((captured.inputs, fresh.inputs), (captured.upstream, fresh.upstream)):
            for name, x in ours.items():
                x.copy_(others[name])
        for name, x in captured.constants.items():
            x.copy_(fresh.constants[name])
        captured.cu_seqlens.copy_(fresh.cu_seqlens)
    for x in results.values():
        x.fill_(float("nan") if x.is_floating_point() or x.is_complex() else -1)
    graph.replay()
    torch.cuda.synchronize()
    return results
