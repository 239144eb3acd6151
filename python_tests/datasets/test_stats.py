"""`python -m recgrela.data stats`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recgrela.data.__main__ import main

SMALL = ["--data.synthetic_users", "60", "--data.synthetic_items", "40"]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(["stats", *argv])
    found = capsys.readouterr()
    return code, found.out, found.err


def write_csv(path: Path, users: int = 12, items: int = 8, time: str = "") -> Path:
    lines = [
        f"u{user},i{(user + step) % items},{time or 10**9 + 3600 * (step + 5 * user)}"
        for user in range(users)
        for step in range(items)
    ]
    path.write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    return path


def test_tables_json_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out, facts_path = write_csv(tmp_path / "ratings.csv"), tmp_path / "plots", tmp_path / "facts.json"
    code, text, _ = run(
        capsys, str(path), "--data.format", "csv", "--out", str(out), "--json", str(facts_path)
    )
    assert code == 0
    for word in ("sparsity", "Gini", "2001-09-09T01:46:40+00:00", "histories shuffled", "12 users"):
        assert word in text
    facts = json.loads(facts_path.read_text())
    assert facts["counts"]["users"] == 12 and facts["counts"]["events"] == 96
    assert facts["order_scores"]["follow_last"]["seen_ranked"] == 1  # the next item in a circle
    assert facts["times"]["days"] == pytest.approx((7 + 55) / 24)
    assert sorted(path.name for path in out.iterdir()) == ["lengths.png", "popularity.png", "times.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in out.iterdir())


def test_settings_of_the_data_are_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_csv(tmp_path / "a.csv", items=4), tmp_path / "facts.json"
    code, _, error = run(capsys, str(path))
    assert code == 2 and "none of the 48 events are left after filtering" in error
    options = ["--data.min_user_events", "1", "--order_users", "0", "--json", str(out)]
    code, text, _ = run(capsys, str(path), *options)
    assert code == 0 and "NDCG" not in text and json.loads(out.read_text())["order_scores"] is None


def test_without_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_csv(tmp_path / "a.csv", time="5"), tmp_path / "plots"
    code, text, _ = run(capsys, str(path), "--out", str(out), "--image", "svg")
    assert code == 0 and "none are used, or all are equal" in text
    assert sorted(path.name for path in out.iterdir()) == ["lengths.svg", "popularity.svg"]


def test_packed_and_synthetic_sets_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = tmp_path / "packed"
    assert main(["convert", "synthetic", str(packed), *SMALL]) == 0
    code, _, error = run(capsys, str(packed), "--data.order", "time")
    assert code == 2 and "is packed and has its own settings; leave out --data.order" in error
    found = []
    for name, source, options in (("a", "synthetic", SMALL), ("b", str(packed), [])):
        code, text, _ = run(capsys, source, *options, "--json", str(tmp_path / name))
        assert code == 0 and ("packed data have none" in text) == (name == "b")
        found.append(json.loads((tmp_path / name).read_text()))
    assert found[1]["times"] is None and found[0]["times"] is not None
    same = ("counts", "lengths", "popularity", "repeats", "order_scores", "sha256")
    assert [found[0][key] for key in same] == [found[1][key] for key in same]


def test_published_counts_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, str(write_csv(tmp_path / "ml-1m.csv")))
    assert code == 0
    assert "6,041 users, 3,417 items, 999,611 events; these data have 13 users, 9 items, 96 events" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["none.csv"], "none.csv: no such file"),
        ([], "arguments are required: PATH"),
        (["synthetic", "--json", "none/a.json"], "--json: none: no such folder"),
        (["synthetic", "--image", "pdf"], "image: 'pdf' is not one of png, svg"),
        (["synthetic", "--order_users", "-1"], "order_users: -1 is below 0"),
        (["synthetic", "--data.path", "x"], "unknown option --data.path"),
    ],
)
def test_errors(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = run(capsys, *argv)
    assert code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give a command first: stats, convert, get"),
        (["stat"], "unknown command stat; did you mean 'stats'?"),
        (["--json", "a"], "give a command first"),
    ],
)
def test_commands(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"{name}:" in text for name in ("stats", "convert", "get"))
