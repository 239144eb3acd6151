"""Run folders with one damaged file: a result or a one-line error, never anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from python_tests.fuzz.conftest import Fuzz
from python_tests.fuzz.mutations import damaged, damaged_values, edit_lists, value_edits
from python_tests.support.runs import make_run
from python_tests.support.sandbox import Sandbox

TARGETS = "python_tests.fuzz.targets"
BINARY = ("items.parquet", "best.safetensors", "last.safetensors", "ranks.safetensors")
JSON = ("protocol.json", "results.json", "metrics.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch of a narrow model, which the module's tests damage and restore."""
    small = ("--model.hidden_size=8", "--model.num_layers=1", "--train.epochs=1")
    return make_run(tmp_path_factory.mktemp("runs"), "run", *small)


@pytest.mark.parametrize("name", ("config.yaml", *JSON, *BINARY))
def test_damaged_bytes(name: str, folder: Path, sandbox: Sandbox, fuzz: Fuzz) -> None:
    content = (folder / name).read_bytes()

    def use(edits: list) -> str:
        return sandbox.call(f"{TARGETS}:open_run", str(folder), name, damaged(content, edits))

    assert use([]) == "result"
    fuzz(use, edit_lists, examples=4)


@pytest.mark.parametrize("name", (*JSON, "last.safetensors"))
def test_damaged_values(name: str, folder: Path, sandbox: Sandbox, fuzz: Fuzz) -> None:
    """Values in a file's JSON: records of metrics.jsonl, the header of a checkpoint and its metadata."""
    content = (folder / name).read_bytes()

    def use(edits: list) -> str:
        return sandbox.call(f"{TARGETS}:open_run", str(folder), name, _with_values(name, content, edits))

    assert use([]) == "result"
    fuzz(use, value_edits, examples=8)


def _with_values(name: str, content: bytes, edits: list[tuple[int, Any]]) -> bytes:
    if name.endswith(".jsonl"):
        records = damaged_values([json.loads(line) for line in content.splitlines()], edits)
        return "".join(json.dumps(record) + "\n" for record in records).encode()
    if not name.endswith(".safetensors"):
        return json.dumps(damaged_values(json.loads(content), edits)).encode()
    length = int.from_bytes(content[:8], "little")
    header, tensors = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = header["__metadata__"]
    header["__metadata__"] = {key: json.loads(text) for key, text in metadata.items() if text[:1] == "{"}
    header = damaged_values(header, edits)
    if isinstance(header.get("__metadata__"), dict):
        header["__metadata__"] = metadata | {k: json.dumps(v) for k, v in header["__metadata__"].items()}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors
