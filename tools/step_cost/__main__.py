"""Counts kernel launches, bytes and memory of a training step on a GPU, without one, and estimates its time.

python -m tools.step_cost [--settings NAME ...] [--json]

The step runs on tensors that have shapes and a CUDA device but no data. Every operator that PyTorch
dispatches is counted: its launches, and the bytes of its operands and results, each once. The memory is that
of all tensors at the peak, without workspaces of our operators and without CUDA graphs. The times are
estimates for an H200, from these counts and figures of measured kernels; measured times are beside them.
"""

from tools.step_cost import fake_cuda

fake_cuda.load()

from tools.step_cost.report import main  # noqa: E402  imports torch

main(__doc__)
