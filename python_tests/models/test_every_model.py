"""What holds for every model of the registry, in each of its forms."""

from __future__ import annotations

import statistics
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.support.gpu import needs_gpu
from python_tests.support.tensors import assert_close, cu_seqlens_of
from recgrela.models import MODELS, SequenceModel, build
from recgrela.nn import Sequences
from recgrela.system.errors import ConfigError

N_ITEMS, MAX_LEN = 30, 12
LENGTHS = [12, 1, 7, 2]
SMALL = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "inner_size": 32, "state_size": 4, "flip": 5}


def small(model: str, **change: Any) -> Any:
    """A model's configuration with sizes for tests."""
    kind = MODELS[model].config
    known = {field.name for field in fields(kind)}
    return kind(**{key: value for key, value in SMALL.items() if key in known} | change)


def forms() -> dict[str, Any]:
    """Every model as it comes, and with padding slots that take part or do not."""
    found = {}
    for name in MODELS:
        config = small(name)
        found[name] = config
        if hasattr(config, "padding"):
            other = {"padding": "mask" if config.padding == "attend" else "attend"}
            if name == "RecGRELA":
                other["mode"] = "bidirectional"
            found[f"{name}-{other['padding']}"] = replace(config, **other)
    found["RecGRELA-bidirectional"] = small("RecGRELA", mode="bidirectional")
    found["RecBLR-cold"] = small("RecBLR", warm_up=False)
    found["Mamba4Rec-one-layer"] = small("Mamba4Rec", num_layers=1)
    return found


FORMS = forms()
CAUSAL = [form for form, config in FORMS.items() if "all" in build(config, N_ITEMS, MAX_LEN).trains_on]


def make(
    form: str, dtype: torch.dtype = torch.float64, max_len: int = MAX_LEN, **change: Any
) -> SequenceModel:
    """A model with weights so large that every part of it shows, in eval mode."""
    torch.manual_seed(1)
    model = build(replace(FORMS[form], **change), N_ITEMS, max_len).to(dtype).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2 and not any(part in name for part in ("conv", "A_log", "params_log")):
                p *= 10
    return model


def packed(lengths: list[int] = LENGTHS) -> tuple[Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(3)
    items = torch.randint(1, N_ITEMS, (sum(lengths),), generator=generator)
    return items, cu_seqlens_of(lengths), max(lengths)


def padded(items: Tensor, lengths: list[int], length: int) -> Tensor:
    rows = [torch.nn.functional.pad(x, (0, length - len(x))) for x in items.split(lengths)]
    return torch.stack(rows)


@pytest.mark.parametrize("form", FORMS)
def test_the_last_rows_alone_are_those_of_all(form: str) -> None:
    """The last block does without the others, and the gradients are the same."""
    model, (items, cu_seqlens, longest) = make(form), packed()
    everything = model.hidden_states(items, cu_seqlens, longest, last_only=False)
    assert everything.shape == (len(items), 16)
    last = model.hidden_states(items, cu_seqlens, longest, last_only=True)
    assert_close("last rows", everything[cu_seqlens[1:] - 1], last, 1e-11)
    names, parameters = zip(*model.named_parameters(), strict=True)
    d = torch.randn_like(last)
    grads = [
        torch.autograd.grad(rows, parameters, d, allow_unused=True)
        for rows in (everything[cu_seqlens[1:] - 1], last)
    ]
    for name, a, b in zip(names, *grads, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            assert_close(name, a, b, 1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_packed_equals_padded_and_each_sequence_is_alone(form: str) -> None:
    model, (items, cu_seqlens, longest) = make(form), packed()
    scores = model.score_packed(items, cu_seqlens, longest)
    assert scores.shape == (len(LENGTHS), N_ITEMS)
    for length in (12, 17):
        assert torch.equal(model.score(padded(items, LENGTHS, length), torch.tensor(LENGTHS)), scores)
    alone = torch.cat([model.score(x[None], torch.tensor([len(x)])) for x in items.split(LENGTHS)])
    assert_close("scores", scores, alone, 1e-11)


@pytest.mark.parametrize("form", CAUSAL)
def test_no_row_sees_those_behind_it(form: str) -> None:
    model, (items, cu_seqlens, longest) = make(form), packed([9, 6])
    hidden = model.hidden_states(items, cu_seqlens, longest, last_only=False)
    changed = items.clone()
    changed[4], changed[-1] = items[4] % (N_ITEMS - 1) + 1, items[-1] % (N_ITEMS - 1) + 1
    other = model.hidden_states(changed, cu_seqlens, longest, last_only=False)
    same = (hidden - other).abs().amax(1) < 1e-12
    assert same.tolist() == [True] * 4 + [False] * 5 + [True] * 5 + [False]


@pytest.mark.parametrize("form", [form for form in FORMS if form not in CAUSAL])
def test_a_model_that_is_not_causal_is_not_trained_on_every_position(form: str) -> None:
    model, (items, cu_seqlens, longest) = make(form), packed()
    with pytest.raises(ConfigError, match="objective 'all' does not go with"):
        model.loss_packed(items, cu_seqlens, items, longest, "all")


@pytest.mark.parametrize("form", CAUSAL)
def test_objective_all_is_the_mean_over_prefixes(form: str) -> None:
    alone = (
        {"contrastive_weight": 0.0} if form.startswith("EulerFormer") else {}
    )  # that is of whole sequences
    model, (items, cu_seqlens, longest) = make(form, **alone), packed([6])
    target = torch.randint(1, N_ITEMS, (6,))
    everywhere = model.loss_packed(items, cu_seqlens, target, longest, "all")
    prefixes = [
        model.loss_packed(items[: n + 1], cu_seqlens_of([n + 1]), target[n : n + 1], n + 1) for n in range(6)
    ]
    assert_close("loss", torch.stack(prefixes).mean(), everywhere, 1e-11)


@pytest.mark.parametrize("name", ["LinRec", "SIGMA", "RecGRELA-bidirectional"])
def test_without_padding_max_len_does_not_matter(name: str) -> None:
    """Where weights are not as many as slots."""
    form = name if name in FORMS and FORMS[name].padding == "mask" else f"{name}-mask"
    batch, scores = packed([5, 9]), {}
    for max_len in (9, 15):
        models = {p: make(form, max_len=max_len, padding=p) for p in ("mask", "attend")}
        if form.startswith("LinRec"):  # its positions are, and the weights that are drawn after them
            weights = make(form, max_len=9).state_dict()
            positions = torch.cat([weights.pop("position_embedding.weight"), torch.zeros(6, 16).double()])
            for model in models.values():
                model.load_state_dict(weights | {"position_embedding.weight": positions[:max_len]})
        for padding, model in models.items():
            scores[padding, max_len] = model.score_packed(*batch)
    assert_close("mask", scores["mask", 9], scores["mask", 15], 1e-11)
    assert (scores["attend", 9] - scores["attend", 15]).abs().max() > 1e-6
    # only the longer sequence fills max_len=9, where there is nothing to attend to
    assert_close("full", scores["attend", 9][1], scores["mask", 9][1], 1e-11)
    assert (scores["attend", 9][0] - scores["mask", 9][0]).abs().max() > 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_learns_with_every_parameter(form: str) -> None:
    torch.manual_seed(1)
    model = build(FORMS[form], N_ITEMS, MAX_LEN)
    items, cu_seqlens, longest = packed()
    target = torch.tensor([3, 5, 7, 9])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(120):
        loss = model.loss_packed(items, cu_seqlens, target, longest)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    if form == "EchoMamba4Rec-mask":  # backward, the last item is the first: no state has decayed yet
        without.remove("layers.1.pairs.1.backward_mamba.A_log")
    assert not without, f"no gradient: {without}"
    assert statistics.median(losses[-20:]) < 0.5 * losses[0]


@pytest.mark.parametrize("form", FORMS)
def test_dropout_is_random_only_in_training(form: str) -> None:
    model, batch = make(form).train(), packed()
    assert not torch.equal(model.score_packed(*batch), model.score_packed(*batch))
    model.eval()
    assert torch.equal(model.score_packed(*batch), model.score_packed(*batch))


@pytest.mark.parametrize("form", FORMS)
def test_autocast_is_near(form: str) -> None:
    model, (items, cu_seqlens, longest) = make(form, torch.float32), packed()
    target = torch.tensor([3, 5, 7, 9])
    scores = model.score_packed(items, cu_seqlens, longest)
    with torch.autocast("cpu", torch.bfloat16):
        low = model.score_packed(items, cu_seqlens, longest)
        loss = model.loss_packed(items, cu_seqlens, target, longest)
    loss.backward()
    assert (low.float() - scores).abs().mean() < 0.05 * scores.abs().mean()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_compiles(name: str) -> None:
    """Without a graph break, but where there is a GRU, which torch.compile leaves alone."""
    model, (items, cu_seqlens, longest) = make(name, num_layers=1), packed()
    target = torch.tensor([3, 5, 7, 9])
    parameters = list(model.parameters())
    torch._dynamo.reset()
    compiled = torch.compile(model.loss_packed, fullgraph=name != "SIGMA", backend="aot_eager", dynamic=True)
    grads = [
        torch.autograd.grad(loss(items, cu_seqlens, target, longest), parameters, allow_unused=True)
        for loss in (model.loss_packed, compiled)
    ]
    for a, b in zip(*grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_close("gradient", a, b, 1e-9)


@pytest.mark.parametrize("form", [form for form in FORMS if not form.startswith("RecGRELA")])
def test_everything_it_makes_is_on_its_device(form: str) -> None:
    """On a device of shapes alone, which no tensor of the CPU goes with (nor autocast, in RecGRELA's op)."""
    model = build(FORMS[form], N_ITEMS, MAX_LEN).to("meta")
    items, cu_seqlens = (torch.empty(n, dtype=torch.int64, device="meta") for n in (sum(LENGTHS), 5))
    for objective in model.trains_on:
        target = torch.empty(4 if objective == "last" else len(items), dtype=torch.int64, device="meta")
        model.loss_packed(items, cu_seqlens, target, MAX_LEN, objective).backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_no_sequences_and_narrow_offsets(form: str) -> None:
    model, (items, cu_seqlens, longest) = make(form), packed()
    assert model.score_packed(items[:0], cu_seqlens[:1], 0).shape == (0, N_ITEMS)
    scores = model.score_packed(items, cu_seqlens.int(), longest)
    assert torch.equal(scores, model.score_packed(items, cu_seqlens, longest))


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_in_parts_has_the_same_gradients(form: str) -> None:
    """Also those of losses that are not of the targets alone."""
    weight = {"contrastive_weight": 1.0} if form.startswith("EulerFormer") else {}
    model, (items, cu_seqlens, longest) = make(form, **weight), packed()
    target = torch.tensor([3, 5, 7, 9])
    whole = model.loss_packed(items, cu_seqlens, target, longest)
    cut = int(cu_seqlens[1])
    first = model.loss_packed(items[:cut], cu_seqlens[:2], target[:1], cut)
    rest = model.loss_packed(items[cut:], cu_seqlens[1:] - cut, target[1:], 7)
    assert_close("loss", whole, 0.25 * first + 0.75 * rest, 1e-11)


def test_rows_of_zeros_have_gradients() -> None:
    """Dropout makes such rows, and with biases of zero EulerFormer's queries and keys are zero there."""
    model = build(FORMS["EulerFormer-mask"], N_ITEMS, MAX_LEN).double()
    sequences = Sequences.of(cu_seqlens_of([4]), 4, 4)
    x = torch.randn(4, 16, dtype=torch.float64)
    x[1] = 0
    hidden, extra = model.encode_for_loss(x.requires_grad_(), sequences, None)
    grads = torch.autograd.grad(hidden.sum() + extra, [x, *model.blocks.parameters()])
    assert all(grad.isfinite().all() for grad in grads)


@needs_gpu
@pytest.mark.parametrize("form", [form for form in CAUSAL if not form.endswith("-attend")])
def test_a_step_can_be_captured(form: str) -> None:
    """As `train.cuda_graphs` does: nothing in it comes from the host or waits for the device."""
    config = FORMS[form] if FORMS[form].name != "EulerFormer" else replace(FORMS[form], padding="mask")
    model = build(config, N_ITEMS, MAX_LEN).cuda()
    items, cu_seqlens, longest = (x.cuda() if isinstance(x, Tensor) else x for x in packed())

    def step() -> None:
        model.zero_grad()
        model.loss_packed(items, cu_seqlens, items, longest, "all").backward()

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@needs_gpu
@pytest.mark.parametrize("form", FORMS)
def test_the_same_on_a_gpu(form: str) -> None:
    items, cu_seqlens, longest = packed()
    target = torch.tensor([3, 5, 7, 9])
    results = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        model = make(form, dtype).to(device)
        batch = (items.to(device), cu_seqlens.to(device))
        scores = model.score_packed(*batch, longest)
        loss = model.loss_packed(*batch, target.to(device), longest)
        loss.backward()
        results.append(
            [scores.cpu(), {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}]
        )
    (scores, grads), (got, got_grads) = results
    assert_close("scores", scores, got, 1e-3)
    for name, grad in grads.items():
        assert_close(name, grad, got_grads[name], 1e-2, scale=1e-4)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "change, message",
    [
        ({"dropout": 1.0}, "model.dropout: 1.0 is not below 1"),
        ({"hidden_size": 0}, "model.hidden_size: 0 is below 1"),
        ({"num_layers": 0}, "model.num_layers: 0 is below 1"),
        ({"name": "SASrec"}, "model.name: 'SASrec' is not "),
    ],
)
def test_bad_config(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(name, **change)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("SASRec", {"num_heads": 3}, "model.num_heads: 3 does not divide model.hidden_size 16"),
        ("SASRec", {"attention_dropout": -0.1}, "model.attention_dropout"),
        (
            "LinRec",
            {"padding": "masked"},
            "model.padding: 'masked' is not one of mask, attend; did you mean 'mask'",
        ),
        ("LinRec", {"inner_size": 0}, "model.inner_size"),
        ("EulerFormer", {"temperature": 0.0}, "model.temperature: 0.0 is not above 0"),
        ("EulerFormer", {"contrastive_weight": -1.0}, "model.contrastive_weight"),
        ("EulerFormer", {"hidden_size": 15, "num_heads": 3}, "model.hidden_size: 15 is not even"),
        ("Mamba4Rec", {"state_size": 0}, "model.state_size"),
        ("Mamba4Rec", {"state_size": 300}, "model.state_size: 300 is above 256"),
        ("LRURec", {"r_min": 0.99, "r_max": 0.8}, "model.r_min"),
        ("SIGMA", {"flip": 0}, "model.flip"),
        ("RecBLR", {"expand": 0}, "model.expand"),
    ],
)
def test_bad_config_of_one_model(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(name, **change)


@pytest.mark.parametrize("form", [f for f, c in FORMS.items() if build(c, N_ITEMS, MAX_LEN).bounded])
def test_a_bounded_model_refuses_longer_histories(form: str) -> None:
    with pytest.raises(ValueError, match="does not fit this model's max_len=12"):
        make(form).score_packed(*packed([30]))


@pytest.mark.parametrize("form", [f for f, c in FORMS.items() if not build(c, N_ITEMS, MAX_LEN).bounded])
def test_any_other_takes_them(form: str) -> None:
    assert make(form).score_packed(*packed([30])).isfinite().all()
