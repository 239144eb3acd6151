"""`python -m recgrela.serve`: options and the errors before it serves."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recgrela.serve import __main__ as serve
from recgrela.serve import server
from recgrela.serve.access import TOKEN_VARIABLE, read_token
from recgrela.serve.importing import import_events
from recgrela.settings.data import DataConfig
from recgrela.store import open_store
from recgrela.system.errors import ConfigError


@pytest.fixture
def no_serving(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Ends the command where it would begin to serve; the list gets what it would serve."""
    served: list[Any] = []
    monkeypatch.setattr(server, "serve", lambda *given: served.append(given))
    return served


def error_of(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert serve.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        serve.main(["--help"])
    text = capsys.readouterr().out
    for option in serve.OPTIONS:
        assert f"--{option.key}" in text


def test_the_default_store_is_in_the_run(
    run: Path, no_serving: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert serve.main([str(run), "--port", "0", "--device", "cpu"]) == 0
    assert len(no_serving) == 1 and (run / "serve.sqlite").is_file()


def test_errors_before_serving(
    run: Path,
    tmp_path: Path,
    no_serving: list[Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    name = str(run)
    assert "no such run folder" in error_of([str(tmp_path / "none")], capsys)
    assert "unknown option --stoer" in error_of([name, "--stoer", "x"], capsys)
    assert "port: 70000 is above 65535" in error_of([name, "--port", "70000"], capsys)
    assert "0.0.0.0 is reached by other machines; give --token_file" in error_of(
        [name, "--host", "0.0.0.0"], capsys
    )
    assert "token_file /none: No such file" in error_of([name, "--token_file", "/none"], capsys)
    assert "host: no.such.host.invalid" in error_of(
        [name, "--host", "no.such.host.invalid", "--without_token", "true"], capsys
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"cannot listen on 127.0.0.1:{port}" in error_of([name, "--port", port], capsys)
    assert "is unknown" in error_of([name, "--store", "mongodb://x"], capsys)
    assert "is not a folder" in error_of([name, "--store", str(tmp_path / "no" / "store")], capsys)
    (run / "best.safetensors").write_bytes(b"damaged")
    assert "not a checkpoint, or damaged" in error_of([name, "--checkpoint", "best"], capsys)
    assert no_serving == []


def test_imported_times_are_seconds(tmp_path: Path) -> None:
    when = pa.array([1_500, 2_000], pa.timestamp("ms"))
    table = pa.table({"user_id": ["u", "u"], "item_id": ["i", "j"], "timestamp": when})
    pq.write_table(table, tmp_path / "events.parquet")
    with open_store(tmp_path / "store.sqlite") as store:
        assert import_events(store, str(tmp_path / "events.parquet"), DataConfig()) == (2, 2)
        assert [event.time for event in store.history("u")] == [1.5, 2.0]


def test_an_import_follows_the_rules_of_the_model(tmp_path: Path) -> None:
    """A model that was trained without duplicates is not given them."""
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\nu,i,1\nu,i,1\nu,NA,2\nu,j,2\n")
    with open_store(tmp_path / "store.sqlite") as store:
        config = DataConfig(duplicates="drop", missing="NA")
        assert import_events(store, str(tmp_path / "events.csv"), config) == (2, 2)
        assert [event.item for event in store.history("u")] == ["i", "j"]


@pytest.mark.parametrize("damage", ["beginning", "middle", "other file"])
def test_a_damaged_store_is_refused(
    run: Path, tmp_path: Path, damage: str, no_serving: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "store.sqlite"
    with open_store(path) as store:
        assert import_events(store, str(write_events(tmp_path)), DataConfig()) == (300, 300)
    content = bytearray(path.read_bytes())
    if damage == "beginning":
        content[:16] = bytes(16)
    elif damage == "middle":
        content[5 * 4096 : 6 * 4096] = b"\xff" * 4096  # the first page of the events
    else:
        content = bytearray(b"user_id,item_id\n")
    path.write_bytes(content)
    error = error_of([str(run), "--store", str(path), "--port", "0"], capsys)
    assert str(path) in error and "restore a copy" in error
    assert path.read_bytes() == bytes(content) and no_serving == []


def write_events(folder: Path) -> Path:
    path = folder / "events.csv"
    lines = [f"u{i % 7},{i % 40},{1000 + i // 3}" for i in range(300)]
    path.write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    return path


def test_import(run: Path, tmp_path: Path, no_serving: list[Any]) -> None:
    """All events are stored in order of time, once, and with states."""
    path, store_path = write_events(tmp_path), tmp_path / "store.sqlite"
    argv = [str(run), "--import", str(path), "--store", str(store_path), "--port", "0", "--device", "cpu"]
    for _ in range(2):
        assert serve.main(argv) == 0
    with open_store(store_path) as store:
        events = store.history("u3")
        assert [event.item for event in events] == [str(i % 40) for i in range(3, 300, 7)]
        assert sorted(store.users()) == [f"u{i}" for i in range(7)]
        key = no_serving[0][0].state.service.engine.key
        assert all(log.state and not log.pending for log in store.load(key, sorted(store.users())))


def test_missing_packages(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "uvicorn" else real(name))
    assert "uvicorn is not installed; run: pip install 'recgrela[serve]'" in error_of([str(run)], capsys)


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(None) is None
    monkeypatch.setenv(TOKEN_VARIABLE, "of the environment".replace(" ", "-"))
    assert read_token(None) == "of-the-environment"
    path = tmp_path / "token"
    path.write_text("of-the-file-12345\n")
    assert read_token(str(path)) == "of-the-file-12345"
    for text in ("", "short", "has spaces in it, many", "not-ascii-é-12345678"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="at least 16 printable ASCII characters"):
            read_token(str(path))
    path.write_bytes(b"\xff" * 20)
    with pytest.raises(ConfigError, match="not text"):
        read_token(str(path))


def test_hosts() -> None:
    assert all(map(server.is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(
        map(server.is_loopback, ("0.0.0.0", "::", "192.168.0.1", "127.evil.example", "example.org"))
    )
    assert server.names_of("127.0.0.2") == ("127.0.0.1", "localhost", "::1", "127.0.0.2")
    assert server.names_of("0.0.0.0") is None
    with server.listen("127.0.0.1", 0) as sock:
        assert server.url_of(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"
