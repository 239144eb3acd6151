"""Run folders with one damaged file: a result or a one-line error, never anything else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from python_tests.fuzz.conftest import Fuzz
from python_tests.fuzz.mutations import damaged, damaged_values, edit_lists, value_edits
from python_tests.support.runs import make_run
from python_tests.support.sandbox import Sandbox
from recgrela.runs.tensor_file import CHECKSUM

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
    """A file with other values in its JSON, and no checksum or the right one, which would hide them."""
    if name.endswith(".jsonl"):
        records = [_without(json.loads(line), "crc32") for line in content.splitlines()]
        return "".join(json.dumps(record) + "\n" for record in damaged_values(records, edits)).encode()
    if not name.endswith(".safetensors"):
        return json.dumps(damaged_values(_without(json.loads(content), "format", "checksum"), edits)).encode()
    length = int.from_bytes(content[:8], "little")
    header, tensors = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = {key: json.loads(text) for key, text in header.pop("__metadata__").items() if key != CHECKSUM}
    edited = damaged_values({"__metadata__": metadata, **header}, edits)
    if not isinstance(edited, dict) or not isinstance(edited.get("__metadata__"), dict):
        text = json.dumps(edited).encode()
        return len(text).to_bytes(8, "little") + text + tensors
    texts = {key: json.dumps(value) for key, value in edited.pop("__metadata__").items()}
    header = {"__metadata__": {CHECKSUM: "0" * 64, **texts}, **edited}
    text = json.dumps(header, separators=(",", ":")).encode()
    whole = len(text).to_bytes(8, "little") + text + tensors
    return whole.replace(b"0" * 64, hashlib.sha256(whole).hexdigest().encode(), 1)


def _without(record: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in keys}
