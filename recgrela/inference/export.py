"""Exports a model's step and search of the best items as one file, which runs without recgrela."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch.export import Dim, ExportedProgram

from recgrela.inference.program import OnlineProgram
from recgrela.models import SequenceModel
from recgrela.ops.support import plain_pytorch
from recgrela.runs.items import Items
from recgrela.system.errors import ConfigError, RunError, one_line
from recgrela.system.files import atomic_write, atomic_write_text

Format = Literal["pt2", "aoti", "onnx"]
FORMATS: tuple[Format, ...] = get_args(Format)
# PyTorch loads packages with this suffix only.
SUFFIXES: dict[Format, str] = {"pt2": ".pt2", "aoti": ".pt2", "onnx": ".onnx"}
ONNX_MAX_BYTES = 2_000_000_000  # a file is one message of protobuf, below 2 GiB


@dataclass(frozen=True)
class Export:
    """A model's program, to be written in any format.

    Attributes:
        program: the step and the search.
        graph: the program as a graph of PyTorch's operators.
        items: the model's items.
    """

    program: OnlineProgram
    graph: ExportedProgram
    items: Items

    def write(self, path: Path, kind: Format) -> None:
        """Writes the program, and PATH.json, which describes it.

        Args:
            path: the file, with the suffix of the format.
            kind: "pt2", a graph of torch.export; "aoti", a library compiled for this machine's CPU by
                AOTInductor; "onnx", a graph for ONNX runtimes.

        Raises:
            ConfigError: the suffix is wrong, or a package for the format is missing.
            RunError: the format lacks an operator, or a file cannot be written.
        """
        check_path(path, kind)
        writers: dict[Format, Callable[[Export, Path], None]] = {
            "pt2": _write_pt2,
            "aoti": _write_aoti,
            "onnx": _write_onnx,
        }
        atomic_write(path, lambda temporary: writers[kind](self, temporary))
        about = description(self.program, self.items) | {"format": kind, "sha256": _sha256(path)}
        atomic_write_text(path.with_name(f"{path.name}.json"), json.dumps(about, ensure_ascii=False))


def export_model(model: SequenceModel, items: Items, k: int = 10) -> Export:
    """Traces a program that updates users' states and recommends; docs/export.md shows how to run it.

    Args:
        model: the model, on any device, of any dtype and in any mode; it is not changed. The program computes
            in float32 on a CPU.
        items: the model's items; retired ones are never recommended.
        k: the number of items to recommend.

    Raises:
        ConfigError: k or the number of items is wrong.
        RunError: the model cannot be exported; the message names the reason.
    """
    if len(items.tokens) != model.n_items:
        raise ConfigError(f"the model has {model.n_items} items, but {len(items.tokens)} are given")
    try:
        program = OnlineProgram(model, k, items.retired)
        return Export(program, trace(program), items)
    except NotImplementedError as error:
        raise RunError(f"{model.config.name} cannot be exported: {one_line(error)}") from error


def check_path(path: Path, kind: Format) -> None:
    """Raises ConfigError unless a path has the suffix of a format."""
    if path.suffix != SUFFIXES[kind]:
        raise ConfigError(f"{path}: the name of a file of format {kind} ends with {SUFFIXES[kind]}")


def trace(program: OnlineProgram) -> ExportedProgram:
    """The program as a graph of PyTorch's operators, for any number of users and of excluded items.

    Raises:
        NotImplementedError: the step has an op that is not a composition of such operators.
    """
    users, excluded = Dim("users"), Dim("excluded")
    state = program.init_state(3)
    inputs = torch.ones(3, dtype=torch.int64), torch.zeros(3, 5, dtype=torch.int64), state
    shapes = {0: users}, {0: users, 1: excluded}, {name: {0: users} for name in state}
    with torch.no_grad(), plain_pytorch():
        exported = torch.export.export(program, inputs, dynamic_shapes=shapes, strict=False)
    for operator in operators(exported):
        if not operator.startswith("aten."):
            raise NotImplementedError(f"the graph has {operator}, which is not an operator of PyTorch")
    return exported


def operators(exported: ExportedProgram) -> set[str]:
    """The operators of a graph, such as "aten.add.Tensor"."""
    targets = {node.target for node in exported.graph.nodes if node.op == "call_function"}
    return {str(target) for target in targets if isinstance(target, torch._ops.OpOverload)}


def description(program: OnlineProgram, items: Items) -> dict[str, object]:
    """The contents of the JSON file but for the program file's own.

    Returns:
        model: its settings; n_items, k: as for the program; state: name, shape without the users and dtype of
        each tensor, in order; items, titles: original id and title of each item, by item id.
    """
    state = [
        {"name": name, "shape": list(tensor.shape[1:]), "dtype": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in program.init_state(0).items()
    ]
    return {
        "model": asdict(program.model.config),
        "n_items": program.n_items,
        "k": program.k,
        "state": state,
        "items": items.tokens,
        "titles": items.titles,
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


# ---- formats


def _write_pt2(export: Export, path: Path) -> None:
    with path.open("wb") as file:
        torch.export.save(export.graph, file)


def _write_aoti(export: Export, path: Path) -> None:
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "program.pt2"
        try:
            torch._inductor.aoti_compile_and_package(export.graph, package_path=str(package))
        except InvalidCxxCompiler as error:
            raise RunError(
                "--format aoti needs a C++ compiler: install g++, set CXX, or use --format pt2"
            ) from error
        except CppCompileError as error:
            raise RunError(
                f"--format aoti: the C++ compiler fails; use --format pt2: {one_line(error)}"
            ) from error
        shutil.copyfile(package, path)


def _write_onnx(export: Export, path: Path) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError("--format onnx needs more packages: pip install 'recgrela[onnx]'") from error
    size = sum(x.numel() * x.element_size() for x in export.program.state_dict().values())
    if size > ONNX_MAX_BYTES:
        raise RunError(f"an ONNX file has at most 2 GB, the weights have {size / 1e9:.1f}; use --format pt2")
    state = list(export.program.init_state(0))
    try:
        with _quiet("torch.onnx", "onnx_ir", "onnxscript"):
            made = torch.onnx.export(
                export.graph,
                dynamo=True,
                verbose=False,
                input_names=["items", "excluded", *(f"state.{name}" for name in state)],
                output_names=[*(f"new_state.{name}" for name in state), "best", "scores"],
            )
    except torch.onnx.OnnxExporterError as error:
        missing = re.search(r"op='(\w+\.\w+)'", str(error))
        what = f"ONNX has no {missing[1]}" if missing else one_line(error)
        raise RunError(f"--format onnx: {what}; use --format pt2 or aoti") from error
    assert made is not None
    made.save(str(path))


@contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    """A context without warnings of other packages about themselves."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
