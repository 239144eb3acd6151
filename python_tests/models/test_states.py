"""States of users: steps and prefills equal passes over whole histories, for every model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.models.forms import FORMS, LENGTHS, MAX_LEN, N_ITEMS, make, packed, small
from python_tests.support.tensors import assert_close, cu_seqlens_of
from recgrela.models import RecGRELAConfig, SequenceModel, build, streaming
from recgrela.nn import ModelState
from recgrela.nn.state import PackedDtype

TOLERANCE = 1e-10
RECURRENT = ["RecGRELA", "LRURec", "Mamba4Rec", "Mamba4Rec-one-layer", "RecBLR", "RecBLR-cold"]


def histories(batch: int, length: int) -> Tensor:
    """[batch, length] item ids."""
    return torch.randint(1, N_ITEMS, (batch, length), generator=torch.Generator().manual_seed(3))


def real(x: Tensor) -> Tensor:
    """Complex numbers as pairs of real ones."""
    return torch.view_as_real(x) if x.is_complex() else x


def full_pass(model: SequenceModel, history: Tensor) -> Tensor:
    """The hidden state after a history [n], from one pass over what the model takes of it."""
    if not model.carries_state:
        history = history[-model.max_len :]
    return model.hidden_states(history, torch.tensor([0, len(history)]), len(history), True)[0]


def test_which_models_carry_a_state_of_fixed_size() -> None:
    assert {form for form in FORMS if make(form).carries_state} == set(RECURRENT)
    assert not make("RecGRELA", position="learned").carries_state
    assert make("RecGRELA", position="none").carries_state


@pytest.mark.parametrize("form", FORMS)
def test_every_step_equals_the_full_pass(form: str) -> None:
    """Also after more items than `max_len`."""
    model, items = make(form), histories(2, MAX_LEN + 5)
    state = model.init_state(2)
    for n, row in enumerate(items.unbind(1), 1):
        hidden = model.step(row, state)
        expected = torch.stack([full_pass(model, history[:n]) for history in items])
        assert_close(f"hidden state after {n} items", hidden, expected, TOLERANCE)
        assert torch.equal(state["hidden"], hidden) and state["position"].tolist() == [n] * 2


ABLATIONS: list[dict[str, Any]] = [
    {"gate": False},
    {"gate_activation": "relu"},
    {"input_projection": False},
    {"value_projection": True},
    {"conv_width": 0},
    {"conv_width": 2},
    {"position": "none"},
    {"mlp_activation": "relu", "mlp_ratio": 1},
    {"eps": 0.1},
    {"num_layers": 1},
    {"num_layers": 1, "single_block_residual": True},
]


@pytest.mark.parametrize("change", ABLATIONS, ids=lambda c: ",".join(f"{k}={v}" for k, v in c.items()))
def test_every_step_of_an_ablation_equals_the_full_pass(change: dict[str, Any]) -> None:
    model, items = make("RecGRELA", **change), histories(3, 9)
    state = model.init_state(3)
    for n, row in enumerate(items.unbind(1), 1):
        expected = torch.stack([full_pass(model, history[:n]) for history in items])
        assert_close(f"hidden state after {n} items", model.step(row, state), expected, TOLERANCE)


@pytest.mark.parametrize("form", RECURRENT)
def test_steps_under_autocast_keep_the_dtype_of_the_model(form: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        if form.startswith(("LRURec", "RecBLR")) and dtype == torch.bfloat16:
            continue  # their parameters are complex, or float32
        model = make(form, dtype)
        with torch.autocast("cpu", torch.bfloat16):
            state, prefilled = model.prefill(torch.tensor([3, 4]), torch.tensor([0, 2]), 2)
            hidden = model.step(torch.tensor([5]), state)
        assert hidden.dtype == prefilled.dtype == state["hidden"].dtype == dtype


@pytest.mark.parametrize("form", ["RecGRELA", "LRURec", "Mamba4Rec", "RecBLR"])
def test_steps_in_float32_equal_the_full_pass(form: str) -> None:
    model, items = make(form, torch.float32), histories(2, 150)
    state = model.init_state(2)
    for row in items.unbind(1):
        hidden = model.step(row, state)
    expected = torch.stack([full_pass(model, history) for history in items])
    assert_close("hidden", hidden, expected, 2e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_prefill_equals_the_steps(form: str) -> None:
    model, (items, cu_seqlens, longest) = make(form), packed()
    state, hidden = model.prefill(items, cu_seqlens, longest)
    for user, history in enumerate(items.split(LENGTHS)):
        single = model.init_state(1)
        for item in history:
            model.step(item[None], single)
        for name, tensor in single.items():
            assert_close(name, real(state[name][user]), real(tensor[0]), TOLERANCE)
    assert torch.equal(hidden, state["hidden"])


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("form", FORMS)
def test_a_prefill_resumes_from_a_state(form: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts of a few rows, too, and with different lengths; the given state is not changed."""
    monkeypatch.setattr(streaming, "PREFILL_ROWS", rows)
    model = make(form)
    before, after = [5, 1, 2, 8], [1, 6, 9, 2]
    first, second = histories(1, sum(before))[0], histories(1, sum(after))[0].flip(0)
    state, _ = model.prefill(first, cu_seqlens_of(before), max(before))
    kept = state.clone()
    resumed, hidden = model.prefill(second, cu_seqlens_of(after), max(after), state)
    whole = [torch.cat(parts) for parts in zip(first.split(before), second.split(after), strict=True)]
    assert_close("hidden", hidden, torch.stack([full_pass(model, history) for history in whole]), TOLERANCE)
    assert resumed["position"].tolist() == [a + b for a, b in zip(before, after, strict=True)]
    assert all(torch.equal(state[name], kept[name]) for name in kept)


def test_rows_after_the_longest_rotary_table_are_taken_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, items = make("RecGRELA"), histories(1, 40)[0]
    expected = full_pass(model, items)
    monkeypatch.setattr(streaming, "PREFILL_ROWS", 8)
    model.max_table = 21
    _, hidden = model.prefill(items, torch.tensor([0, 40]), 40)
    assert_close("hidden", hidden[0], expected, TOLERANCE)
    # Beside a user at the beginning, who has a table.
    lengths = [40, 5]
    both = torch.cat([items, items[:5]])
    _, hidden = model.prefill(both, cu_seqlens_of(lengths), 40)
    assert_close("first", hidden[0], expected, TOLERANCE)
    assert_close("second", hidden[1], full_pass(model, items[:5]), TOLERANCE)


def test_positions_have_no_limit() -> None:
    """Scores depend on distances of items only, so a user far along gets those of a user at the beginning.

    The eps of the denominator is 0, because it is added to a mean over all positions.
    """
    model = make("RecGRELA", eps=0.0, num_layers=2)
    items = histories(1, 9)[0]
    expected = full_pass(model, items)
    for position in (1 << 20, (1 << 31) + 5, (1 << 40) + 3):
        state = model.init_state(1)
        for name in state:
            if name.endswith("position"):
                state[name].fill_(position)
        for item in items:
            hidden = model.step(item[None], state)
        assert_close(f"from position {position}", hidden[0], expected, 1e-6 if position >> 32 else 1e-9)


@pytest.mark.parametrize("form", ["RecGRELA", "LRURec", "Mamba4Rec", "RecBLR"])
def test_a_state_of_another_instance_of_the_model_is_taken(form: str) -> None:
    """By an instance that has not made a state itself."""
    model, (items, cu_seqlens, longest) = make(form), packed()
    state, _ = model.prefill(items, cu_seqlens, longest)
    expected = model.step(items[:4], state.clone())
    assert torch.equal(make(form).step(items[:4], state), expected)


@pytest.mark.parametrize("form", ["RecGRELA", "SASRec", "LinRec", "EulerFormer", "EulerFormer-mask"])
def test_a_step_of_fixed_shapes_equals_a_step(form: str) -> None:
    model = make(form)
    state = model.init_state(3)
    fixed = state.clone()
    for row in histories(3, MAX_LEN + 3).unbind(1):
        assert_close("hidden", model.step(row, state), model.fixed_step(row, fixed), TOLERANCE)
        assert all(fixed[name].shape == state[name].shape for name in state)


def test_a_step_of_fixed_shapes_is_refused_where_padding_would_change_it() -> None:
    model = make("LinRec-mask")
    with pytest.raises(NotImplementedError, match="attends to later items but not to padding"):
        model.fixed_step(torch.tensor([1]), model.init_state(1))


# ---- selecting, joining, bytes


@pytest.mark.parametrize("form", ["RecGRELA", "LRURec", "SASRec"])
def test_users_can_be_selected_joined_and_overwritten(form: str) -> None:
    model = make(form)
    items, cu_seqlens, longest = packed()
    state, _ = model.prefill(items, cu_seqlens, longest)
    swapped = state.select([2, 0])
    assert swapped.batch == 2 and torch.equal(swapped["hidden"], state["hidden"][[2, 0]])
    joined = ModelState.cat([swapped, state])
    assert joined.batch == 6
    fresh = model.init_state(4)
    fresh.assign([3, 1], swapped)
    assert torch.equal(fresh["hidden"][[3, 1]], swapped["hidden"]) and not fresh["hidden"][0].any()


@pytest.mark.parametrize("form", FORMS)
def test_packed_states_are_restored_bit_by_bit(form: str) -> None:
    model = make(form, torch.float32)
    state, _ = model.prefill(*packed())
    data = state.pack()
    assert data.shape == (len(LENGTHS), state.num_bytes()) and data.dtype == torch.uint8
    restored = model.init_state(0).unpack(data)
    assert list(restored) == list(state)
    assert all(torch.equal(restored[name], state[name]) for name in state)
    assert all(restored[name].dtype == state[name].dtype for name in state)


def test_a_state_of_the_published_size_has_20_kilobytes() -> None:
    state = build(RecGRELAConfig(), 100, 200).eval().init_state(1)
    assert 20_000 < state.num_bytes() < 21_000
    assert state.num_bytes("bfloat16") < 10_600


def test_bfloat16_states_follow_long_histories() -> None:
    """Sums that were rounded to nearest after each item would stop growing at 256."""
    model, items = make("RecGRELA", torch.float32, num_layers=1), histories(1, 700)[0]
    torch.manual_seed(0)
    exact, stored = model.init_state(1), model.init_state(1).pack("bfloat16")
    layout = model.init_state(0)
    for item in items:
        model.step(item[None], exact)
        state = layout.unpack(stored, "bfloat16")
        model.step(item[None], state)
        stored = state.pack("bfloat16")
    ratio = (
        state["blocks.0.attention.kv_state"][0, :, -1].sum()
        / exact["blocks.0.attention.kv_state"][0, :, -1].sum()
    )
    assert abs(float(ratio) - 1) < 0.05
    cosine = torch.cosine_similarity(state["hidden"], exact["hidden"])
    assert float(cosine) > 0.98


@pytest.mark.parametrize("name", ["RecGRELA", "SASRec", "LRURec", "RecBLR", "Mamba4Rec"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [6, 10])
def test_states_of_any_width_are_restored(name: str, dtype: PackedDtype, width: int) -> None:
    """Also from bytes at an odd address, and of a single user."""
    config = small(name, hidden_size=width, **({"num_heads": 1} if name in ("RecGRELA", "SASRec") else {}))
    model = build(config, N_ITEMS, MAX_LEN).eval()
    state, _ = model.prefill(torch.tensor([3, 4, 5]), torch.tensor([0, 1, 3]), 2)
    data = state.pack(dtype)
    for users in ([0, 1], [1]):
        shifted = torch.zeros(len(users) * data.shape[1] + 1, dtype=torch.uint8)
        shifted[1:] = data[users].flatten()
        restored = model.init_state(0).unpack(shifted[1:].view(len(users), -1), dtype)
        assert_close("hidden", restored["hidden"], state["hidden"][users], 2e-2)
        assert torch.equal(restored["position"], state["position"][users])


def test_results_do_not_change_with_the_state() -> None:
    for form in ("RecGRELA", "SASRec"):
        model = make(form)
        state = model.init_state(1)
        first = model.step(torch.tensor([3]), state)
        kept = first.clone()
        model.step(torch.tensor([7]), state)
        assert torch.equal(first, kept)


# ---- bad input


@pytest.mark.parametrize("form", ["RecGRELA", "SASRec"])
@pytest.mark.parametrize("item", [N_ITEMS, -1, (1 << 32) + 5])
def test_an_unknown_item_leaves_the_state_unchanged(form: str, item: int) -> None:
    model = make(form)
    state, _ = model.prefill(torch.tensor([3, 4]), torch.tensor([0, 2]), 2)
    kept = state.clone()
    with pytest.raises((IndexError, RuntimeError)):
        model.step(torch.tensor([item]), state)
    assert all(torch.equal(state[name], kept[name]) for name in kept)


def test_masks_select_users() -> None:
    model = make("RecGRELA")
    state, _ = model.prefill(*packed())
    mask = torch.tensor([True, False, False, True])
    assert torch.equal(state.select(mask)["hidden"], state["hidden"][mask])
    with pytest.raises(ValueError, match=r"a mask of states must be \[4\], got \(3,\)"):
        state.select(mask[:3])


@pytest.mark.parametrize("form", ["RecGRELA", "SASRec"])
def test_no_users_and_narrow_offsets(form: str) -> None:
    model = make(form)
    state, hidden = model.prefill(torch.zeros(0, dtype=torch.int64), torch.tensor([0]), 0)
    assert state.batch == 0 and hidden.shape[0] == 0
    items, cu_seqlens, longest = packed()
    _, narrow = model.prefill(items, cu_seqlens.int(), longest)
    assert torch.equal(narrow, model.prefill(items, cu_seqlens, longest)[1])


def test_bad_input_is_refused() -> None:
    model = make("RecGRELA")
    state = model.init_state(2)
    with pytest.raises(ValueError, match="do not fit states of 2 users"):
        model.step(torch.tensor([1, 2, 3]), state)
    with pytest.raises(ValueError, match="histories are not empty"):
        model.prefill(torch.tensor([1, 2]), torch.tensor([0, 2, 2]), 2)
    with pytest.raises(ValueError, match="max_seqlen is 1, but a history has 2 items"):
        model.prefill(torch.tensor([1, 2]), torch.tensor([0, 2]), 1)
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, got 'bf16'"):
        state.pack("bf16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="end at 3"):
        model.prefill(torch.tensor([1, 2, 3]), torch.tensor([0, 2]), 2)
    with pytest.raises(ValueError, match="float32 state of this model has"):
        model.init_state(0).unpack(torch.zeros(1, 7, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        model.train().step(torch.tensor([1, 2]), state)
