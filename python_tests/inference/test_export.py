"""Exported programs, run by a process without recgrela, equal the model's steps and an exact search."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from python_tests.inference import export_client
from python_tests.models.forms import MAX_LEN, N_ITEMS, make
from python_tests.support.tensors import assert_close
from recgrela import export
from recgrela.inference.export import FORMATS, SUFFIXES, Export, Format, check_path, export_model, operators
from recgrela.inference.program import OnlineProgram
from recgrela.models import SequenceModel
from recgrela.nn import ModelState
from recgrela.runs.items import Items
from recgrela.system.errors import ConfigError, RunError

USERS, STEPS, K = 3, MAX_LEN + 9, 4
RETIRED = 17
MODELS = ["RecGRELA", "LRURec", "Mamba4Rec", "RecBLR", "SASRec", "LinRec", "EulerFormer"]
# The conversion to ONNX takes seconds; these have all operators of the others but those of polar angles.
ONNX = ["RecGRELA", "LRURec", "Mamba4Rec", "RecBLR", "SASRec"]
# A program with a name of its own runs from far positions too, which have more than 32 bits.
FAR, FAR_POSITIONS = "far", [2**31 + 5, 2**40 + 3, 7]
ALL_ITEMS = np.zeros(N_ITEMS, dtype=bool)

needs_onnx = pytest.mark.skipif(
    not (find_spec("onnxruntime") and find_spec("onnxscript")), reason="needs recgrela[onnx]"
)


def make_items() -> Items:
    titles: list[str | None] = [None, *(f"Title {i} é" for i in range(1, N_ITEMS))]
    return Items(["", *(f"item{i}" for i in range(1, N_ITEMS))], titles, np.arange(N_ITEMS) == RETIRED)


def make_model(name: str) -> SequenceModel:
    """A model in training mode and float64, neither of which is exported."""
    change = {"single_block_residual": True} if name == "RecGRELA" else {}
    return make(name, torch.float64, num_layers=1, **change).train()


def as_exported(model: SequenceModel) -> SequenceModel:
    return copy.deepcopy(model).float().eval()


def make_inputs() -> tuple[Tensor, Tensor]:
    """Items [STEPS, USERS], some of them 0 (no event), and items to exclude [STEPS, USERS, 2]."""
    generator = torch.Generator().manual_seed(5)
    items = torch.randint(1, N_ITEMS, (STEPS, USERS), generator=generator)
    items[[2, 0, 4, 5, 6], [0, 1, 1, 2, 2]] = 0
    return items, torch.randint(0, N_ITEMS, (STEPS, USERS, 2), generator=generator)


def state_at(model: SequenceModel, positions: list[int]) -> ModelState:
    """States after one item whose positions are changed."""
    state = model.init_state(len(positions))
    model.step(torch.arange(1, len(positions) + 1), state)
    for name, tensor in state.items():
        if name.endswith("position"):
            tensor.copy_(torch.tensor(positions))
    return state


def run_client(folder: Path) -> None:
    """Runs the programs in a process without recgrela."""
    items, excluded = make_inputs()
    np.savez(folder / "inputs.npz", items=items.numpy(), excluded=excluded.numpy())
    client = Path(export_client.__file__)
    subprocess.run([sys.executable, "-I", str(client), str(folder)], check=True, cwd=folder)


@dataclass
class Programs:
    """Files of programs and their results, and the models by name."""

    folder: Path
    models: dict[str, SequenceModel]

    def results(self, name: str) -> dict[str, Tensor]:
        return {key: torch.from_numpy(x) for key, x in np.load(self.folder / f"{name}.npz").items()}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    folder, models = tmp_path_factory.mktemp("programs"), {}
    for name in MODELS:
        models[name] = make_model(name)
        made = export_model(models[name], make_items(), K)
        assert all(operator.startswith("aten.") for operator in operators(made.graph))
        made.write(folder / f"{name}.pt2", "pt2")
        if name in ONNX and not needs_onnx.args[0]:
            made.write(folder / f"{name}.onnx", "onnx")
    start = state_at(as_exported(models["RecGRELA"]), FAR_POSITIONS)
    np.savez(folder / f"{FAR}.RecGRELA.start.npz", **{name: x.numpy() for name, x in start.items()})
    run_client(folder)
    return Programs(folder, models)


def check(model: SequenceModel, results: dict[str, Tensor], start: ModelState | None = None) -> None:
    """Compares results with the model's steps and scores of all items."""
    model, (items, excluded) = as_exported(model), make_inputs()
    state = model.init_state(USERS) if start is None else start
    for n in range(STEPS):
        users = items[n].nonzero()[:, 0]
        part = state.select(users)
        model.step(items[n][users], part)
        state.assign(users, part)
        scores = model.scores(state["hidden"]).detach()
        scores[:, [0, RETIRED]] = -torch.inf
        check_best(scores[:1], results["own_best"][n], results["own_scores"][n])
        check_best(scores.scatter(1, excluded[n], -torch.inf), results["best"][n], results["scores"][n])
    for name, tensor in state.items():
        expected = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        assert results[f"state.{name}"].dtype == expected.dtype
        assert_close(name, expected, results[f"state.{name}"], 1e-4)


def check_best(scores: Tensor, best: Tensor, best_scores: Tensor) -> None:
    """Checks for the K best of scores [B, n_items]; scores that differ by less than 1e-4 are equal."""
    tolerance = 1e-4 * max(1.0, float(scores[scores.isfinite()].abs().max()))
    assert best.shape == (len(scores), K) and best.dtype == torch.int64 and best_scores.dtype == torch.float32
    assert (best_scores - scores.topk(K)[0]).abs().max() <= tolerance
    assert (scores.gather(1, best) - best_scores).abs().max() <= tolerance
    assert all(len(set(row)) == K for row in best.tolist())


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_of_pytorch_equals_the_model(name: str, programs: Programs) -> None:
    check(programs.models[name], programs.results(f"{name}.pt2"))


@needs_onnx
@pytest.mark.parametrize("name", ONNX)
def test_a_graph_of_onnx_equals_the_model(name: str, programs: Programs) -> None:
    check(programs.models[name], programs.results(f"{name}.onnx"))


@pytest.mark.parametrize("kind", ["pt2", pytest.param("onnx", marks=needs_onnx)])
def test_angles_of_far_positions_are_exact(kind: str, programs: Programs) -> None:
    """Their integer products wrap around in each runtime."""
    model = programs.models["RecGRELA"]
    start = state_at(as_exported(model), FAR_POSITIONS)
    check(model, programs.results(f"{FAR}.RecGRELA.{kind}"), start)


def test_a_package_of_aotinductor_equals_the_model(tmp_path: Path) -> None:
    model = make_model("LRURec")  # the one that compiles fastest
    try:
        export_model(model, make_items(), K).write(tmp_path / "LRURec.pt2", "aoti")
    except RunError as error:
        if "needs a C++ compiler" not in str(error):
            raise
        pytest.skip(str(error))
    run_client(tmp_path)
    check(model, Programs(tmp_path, {}).results("LRURec.pt2"))


def test_the_json_file_describes_the_program(programs: Programs) -> None:
    about = json.loads((programs.folder / "LRURec.pt2.json").read_text("utf-8"))
    program = (programs.folder / "LRURec.pt2").read_bytes()
    assert about["sha256"] == hashlib.sha256(program).hexdigest()
    assert about["format"] == "pt2" and about["k"] == K and about["model"]["name"] == "LRURec"
    assert about["items"] == make_items().tokens and about["titles"] == make_items().titles
    assert about["state"] == [
        {"name": "position", "shape": [], "dtype": "int64"},
        {"name": "hidden", "shape": [16], "dtype": "float32"},
        {"name": "blocks.0.lru.scan", "shape": [32, 2], "dtype": "float32"},
    ]


def test_the_model_is_not_changed() -> None:
    model = make_model("RecBLR")
    weights = {name: x.clone() for name, x in model.state_dict().items()}
    OnlineProgram(model, K, ALL_ITEMS)
    assert model.training and all(torch.equal(x, weights[name]) for name, x in model.state_dict().items())
    assert all(x.requires_grad for x in model.parameters())


def test_places_without_an_item_have_item_0() -> None:
    program = OnlineProgram(make_model("LRURec"), K, ALL_ITEMS)
    excluded = torch.arange(3, N_ITEMS)[None]
    _, best, scores = program(torch.tensor([5]), excluded, program.init_state(1))
    assert sorted(best[0, :2].tolist()) == [1, 2] and best[0, 2:].tolist() == [0, 0]
    assert scores[0, :2].isfinite().all() and (scores[0, 2:] == -torch.inf).all()


# ---- what cannot be exported


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("SIGMA", "SIGMA cannot be exported: causal_conv1d has no composition in plain PyTorch"),
        ("EchoMamba4Rec", "EchoMamba4Rec cannot be exported: causal_conv1d has no composition"),
        ("RecGRELA-attend", "RecGRELA cannot be exported: gated_rela has no composition"),
        ("LinRec-mask", "LinRec cannot be exported: it attends to later items but not to padding"),
    ],
)
def test_a_model_that_cannot_be_exported_is_an_error(form: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        export_model(make(form), make_items(), K)


@needs_onnx
def test_an_operator_that_onnx_lacks_is_an_error(tmp_path: Path) -> None:
    program = OnlineProgram(make_model("LRURec"), K, ALL_ITEMS)
    graph = torch.export.export(Exponential(), (torch.eye(3),))
    with pytest.raises(RunError, match=r"ONNX has no aten\.linalg_matrix_exp; use --format pt2 or aoti"):
        Export(program, graph, make_items()).write(tmp_path / "x.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


class Exponential(torch.nn.Module):
    """An operator that ONNX lacks."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(x)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_wrong_suffix_is_an_error(kind: Format) -> None:
    with pytest.raises(ConfigError, match=rf"format {kind} ends with \{SUFFIXES[kind]}"):
        check_path(Path("model.bin"), kind)


def test_a_wrong_k_is_an_error() -> None:
    for k in (0, N_ITEMS - 1):
        with pytest.raises(ConfigError, match=f"k: {k} is not in 1 .. {N_ITEMS - 2}, the number of items"):
            OnlineProgram(make_model("LRURec"), k, make_items().retired)


def test_the_command(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main([str(finished_run), "--output", str(tmp_path / "model.pt2"), "--k", "3"]) == 0
    assert "model.pt2.json" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt2", "model.pt2.json"]
    assert json.loads((tmp_path / "model.pt2.json").read_text())["k"] == 3


def test_the_command_refuses_bad_options(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main([str(finished_run)]) == 2
    assert "give the file to write: --output FILE" in capsys.readouterr().err
    assert export.main([str(finished_run), "--output", "x.pt2", "--format", "onnx"]) == 2
    assert "x.pt2: the name of a file of format onnx ends with .onnx" in capsys.readouterr().err
