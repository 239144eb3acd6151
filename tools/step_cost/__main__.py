"""Counts kernel launches and bytes of a training step on a GPU, without one.

python -m tools.step_cost [--settings NAME ...] [--json]

The step runs on tensors that have shapes and a CUDA device but no data. Every operator that PyTorch
dispatches is counted: its launches, and the bytes of its operands and results, each once.
"""

from tools.step_cost import fake_cuda

fake_cuda.load()

from tools.step_cost.report import main  # noqa: E402  imports torch

main()
