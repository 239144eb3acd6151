"""Prints what a CUDA graph could not capture of a pass over each model, on a GPU without data.

A program, because `fake_cuda` must be loaded before torch. The lines are JSON: form, objective, autocast, and
the operation and its place or null.
"""

from tools.step_cost import fake_cuda

fake_cuda.load()

import json  # noqa: E402
from dataclasses import replace  # noqa: E402

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode  # noqa: E402

from python_tests.models.forms import FORMS, MAX_LEN, N_ITEMS  # noqa: E402
from recgrela.evaluation.metrics import RankingCounts  # noqa: E402
from recgrela.models import MODELS, SequenceModel, build  # noqa: E402
from recgrela.models.capture import filling_for, small_batch  # noqa: E402
from recgrela.parallel.score_blocks import rank_targets, whole_scores  # noqa: E402
from recgrela.settings.model import ModelConfig  # noqa: E402
from recgrela.settings.train import Objective  # noqa: E402
from recgrela.system.host_reads import host_read  # noqa: E402
from tools.step_cost.steps import keep_rotary_tables  # noqa: E402

# The reference of gated_rela, which runs for heads of such a width, reads lengths on the host.
NO_KERNEL = {"RecGRELA-no-kernel": replace(FORMS["RecGRELA"], hidden_size=12)}


def move(model: SequenceModel) -> None:
    """Replaces parameters and buffers by tensors on the GPU."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, x in tensors.items():
                if x is not None:
                    moved = torch.empty(x.shape, dtype=x.dtype, device="cuda")
                    tensors[name] = nn.Parameter(moved) if isinstance(x, nn.Parameter) else moved


def obstacle(config: ModelConfig, objective: Objective, amp: bool) -> str | None:
    """The first obstacle in a loss and its gradients, or in a ranking."""
    model = build(config, N_ITEMS, MAX_LEN)
    batches = [
        filling_for(model, name, MAX_LEN)(small_batch(model, name, MAX_LEN)) for name in (objective, "last")
    ]
    with FakeTensorMode(), fake_cuda.without_gpu():
        move(model)
        keep_rotary_tables(model)
        on_gpu = [[torch.empty(x.shape, dtype=x.dtype, device="cuda") for x in batch] for batch in batches]

        def train() -> None:
            items, cu_seqlens, target, *lengths = on_gpu[0]
            options = {"lengths": lengths[0]} if lengths else {}
            with torch.autocast("cuda", torch.bfloat16, enabled=amp):
                loss = model.loss_packed(items, cu_seqlens, target, MAX_LEN, objective, **options)
            loss.backward()

        counts = RankingCounts(torch.device("cuda"))

        @torch.no_grad()
        def rank() -> None:
            items, cu_seqlens, target, *lengths = on_gpu[1]
            hidden = model.hidden_states(items, cu_seqlens, MAX_LEN, True, *lengths)
            scores = model.scores(hidden[: target.shape[0]])
            mask = torch.zeros_like(scores, dtype=torch.bool)
            found = rank_targets(whole_scores(scores), target, lambda start, size: mask)
            counts.add(found, mask[:, 0])

        model.train()
        found = host_read(train, "cuda")
        model.eval()
        return found or host_read(rank, "cuda")


def main() -> None:
    for form, config in {**FORMS, **NO_KERNEL}.items():
        model = build(config, N_ITEMS, MAX_LEN)
        if model.capture_obstacle:
            continue
        for objective in model.trains_on:
            for amp in (False, True) if form in MODELS else (True,):
                try:
                    found = obstacle(config, objective, amp)
                except DataDependentOutputException as error:
                    found = str(error.func)  # without data it ends there
                print(json.dumps([form, objective, amp, found]))


if __name__ == "__main__":
    main()
