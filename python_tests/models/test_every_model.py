"""The contract of every model of the registry, in each of its forms: packed rows, padding, causality."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from python_tests.models.forms import (
    BOUNDED,
    BUILT,
    CAUSAL,
    FORMS,
    LENGTHS,
    MAX_LEN,
    N_ITEMS,
    TARGET,
    check_last_rows,
    make,
    packed,
    padded,
)
from python_tests.support.tensors import assert_close, cu_seqlens_of
from recgrela.models import build
from recgrela.nn import Sequences
from recgrela.system.errors import ConfigError


@pytest.mark.parametrize("form", FORMS)
def test_last_rows_alone_equal_those_of_all_rows(form: str) -> None:
    """Also in the gradients, although the last block computes the wanted rows only."""
    check_last_rows(make(form), packed(), 1e-11, 1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_packed_equals_padded_and_each_sequence_alone(form: str) -> None:
    model, (items, cu_seqlens, longest) = make(form), packed()
    scores = model.score_packed(items, cu_seqlens, longest)
    assert scores.shape == (len(LENGTHS), N_ITEMS)
    for length in (12, 17):
        assert torch.equal(model.score(padded(items, LENGTHS, length), torch.tensor(LENGTHS)), scores)
    alone = torch.cat([model.score(x[None], torch.tensor([len(x)])) for x in items.split(LENGTHS)])
    assert_close("scores", scores, alone, 1e-11)


@pytest.mark.parametrize("form", CAUSAL)
def test_no_row_depends_on_later_rows(form: str) -> None:
    model, (items, cu_seqlens, longest) = make(form), packed([9, 6])
    hidden = model.hidden_states(items, cu_seqlens, longest, last_only=False)
    changed = items.clone()
    changed[4], changed[-1] = items[4] % (N_ITEMS - 1) + 1, items[-1] % (N_ITEMS - 1) + 1
    other = model.hidden_states(changed, cu_seqlens, longest, last_only=False)
    same = (hidden - other).abs().amax(1) < 1e-12
    assert same.tolist() == [True] * 4 + [False] * 5 + [True] * 5 + [False]


@pytest.mark.parametrize("form", [form for form in FORMS if form not in CAUSAL])
def test_only_causal_models_train_on_every_position(form: str) -> None:
    model, (items, cu_seqlens, longest) = make(form), packed()
    with pytest.raises(ConfigError, match="cannot train on 'all'; expected last"):
        model.loss_packed(items, cu_seqlens, items, longest, "all")


@pytest.mark.parametrize("form", CAUSAL)
def test_objective_all_is_the_mean_over_prefixes(form: str) -> None:
    # EulerFormer's contrastive loss depends on whole sequences.
    change = {"contrastive_weight": 0.0} if form.startswith("EulerFormer") else {}
    model, (items, cu_seqlens, longest) = make(form, **change), packed([6])
    target = torch.randint(1, N_ITEMS, (6,))
    everywhere = model.loss_packed(items, cu_seqlens, target, longest, "all")
    prefixes = [
        model.loss_packed(items[: n + 1], cu_seqlens_of([n + 1]), target[n : n + 1], n + 1) for n in range(6)
    ]
    assert_close("loss", torch.stack(prefixes).mean(), everywhere, 1e-11)


@pytest.mark.parametrize("name", ["LinRec", "SIGMA", "RecGRELA-bidirectional"])
def test_without_padding_max_len_does_not_matter(name: str) -> None:
    """In the models whose weights do not depend on max_len, apart from LinRec's positions."""
    form = name if name in FORMS and FORMS[name].padding == "mask" else f"{name}-mask"
    batch, scores = packed([5, 9]), {}
    for max_len in (9, 15):
        models = {p: make(form, max_len=max_len, padding=p) for p in ("mask", "attend")}
        if form.startswith("LinRec"):  # its positions do, and the weights drawn after them
            weights = make(form, max_len=9).state_dict()
            positions = torch.cat([weights.pop("position_embedding.weight"), torch.zeros(6, 16).double()])
            for model in models.values():
                model.load_state_dict(weights | {"position_embedding.weight": positions[:max_len]})
        for padding, model in models.items():
            scores[padding, max_len] = model.score_packed(*batch)
    assert_close("mask", scores["mask", 9], scores["mask", 15], 1e-11)
    assert (scores["attend", 9] - scores["attend", 15]).abs().max() > 1e-6
    # Only the longer sequence fills max_len=9, without padding to attend to.
    assert_close("full", scores["attend", 9][1], scores["mask", 9][1], 1e-11)
    assert (scores["attend", 9][0] - scores["mask", 9][0]).abs().max() > 1e-6


@pytest.mark.parametrize("lengths", [LENGTHS, [3, 3], [1]], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_slots_are_those_that_a_pass_computes(
    form: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows that `encode` gets, or the slots of the largest dense form that it makes."""
    seen = []
    to_dense, model = Sequences.to_dense, make(form, torch.float32)
    encode = model.encode

    def watched_dense(self: Sequences, x: Tensor, length: int | None = None) -> Tensor:
        dense = to_dense(self, x, length)
        seen.append(dense.shape[0] * dense.shape[1])
        return dense

    def watched_encode(x: Tensor, sequences: Sequences) -> Tensor:
        seen.append(len(x))
        return encode(x, sequences)

    monkeypatch.setattr(Sequences, "to_dense", watched_dense)
    monkeypatch.setattr(model, "encode", watched_encode)
    model.score_packed(*packed(lengths))
    assert model.slots(np.array(lengths)) == max(seen)


@pytest.mark.parametrize("form", FORMS)
def test_slots_grow_with_each_sequence(form: str) -> None:
    """`Batch.parts` bisects by the number of slots."""
    lengths = np.array([*LENGTHS, *LENGTHS])
    slots = [BUILT[form].slots(lengths[:count]) for count in range(1, len(lengths) + 1)]
    assert slots == sorted(set(slots)) and all(type(count) is int for count in slots)


@pytest.mark.parametrize("form", FORMS)
def test_only_models_with_padding_attend_are_padded(form: str) -> None:
    model = make(form, torch.float32)
    assert model.attends_to_padding == (getattr(FORMS[form], "padding", "mask") == "attend")
    if model.attends_to_padding:
        assert model.slots(np.array([1, 2])) == 2 * MAX_LEN and model.max_positions == MAX_LEN


@pytest.mark.parametrize("form", FORMS)
def test_no_sequences_and_int32_offsets(form: str) -> None:
    model, (items, cu_seqlens, longest) = make(form), packed()
    assert model.score_packed(items[:0], cu_seqlens[:1], 0).shape == (0, N_ITEMS)
    scores = model.score_packed(items, cu_seqlens.int(), longest)
    assert torch.equal(scores, model.score_packed(items, cu_seqlens, longest))


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_in_parts_has_the_same_loss(form: str) -> None:
    """Also losses that are not of the targets alone."""
    change: dict[str, Any] = {"contrastive_weight": 1.0} if form.startswith("EulerFormer") else {}
    model, (items, cu_seqlens, longest) = make(form, **change), packed()
    whole = model.loss_packed(items, cu_seqlens, TARGET, longest)
    cut = int(cu_seqlens[1])
    first = model.loss_packed(items[:cut], cu_seqlens[:2], TARGET[:1], cut)
    rest = model.loss_packed(items[cut:], cu_seqlens[1:] - cut, TARGET[1:], 7)
    assert_close("loss", whole, 0.25 * first + 0.75 * rest, 1e-11)


@pytest.mark.parametrize("form", BOUNDED)
def test_a_bounded_model_refuses_longer_histories(form: str) -> None:
    with pytest.raises(ValueError, match="max_seqlen: 30 is above the 12 positions"):
        make(form).score_packed(*packed([30]))


@pytest.mark.parametrize("form", [form for form in FORMS if form not in BOUNDED])
def test_any_other_model_takes_longer_histories(form: str) -> None:
    assert make(form).score_packed(*packed([30])).isfinite().all()


def test_rows_of_zeros_have_gradients() -> None:
    """Dropout makes such rows. With zero biases EulerFormer's queries and keys are zero there."""
    model = build(FORMS["EulerFormer-mask"], N_ITEMS, MAX_LEN).double()
    sequences = Sequences.of(cu_seqlens_of([4]), 4, 4)
    x = torch.randn(4, 16, dtype=torch.float64)
    x[1] = 0
    hidden, extra = model.encode_for_loss(x.requires_grad_(), sequences)
    grads = torch.autograd.grad(hidden.sum() + extra, [x, *model.blocks.parameters()])
    assert all(grad.isfinite().all() for grad in grads)
