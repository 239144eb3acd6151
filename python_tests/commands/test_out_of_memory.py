"""Commands under a limit of memory: one line that names what helps, and exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from python_tests.support.runs import options

# Runs each case in a fork under a limit above the memory in use, so that PyTorch is imported once.
SCRIPT = """
import json, os, resource, sys
import torch
from recgrela import evaluate, recommend, train
torch.set_num_threads(1)
import torch._dynamo  # torch.optim imports it
for name, extra, argv in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        fields = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
        limit = int(fields["VmSize"].split()[0]) * 1024 + extra
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        code = {"train": train, "evaluate": evaluate, "recommend": recommend}[name].main(argv)
        sys.stdout.flush()
        os._exit(code)
    print("exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.stderr, flush=True)
"""
MB = 1 << 20
CATALOGUE = ["--data.synthetic_items=20000", "--data.min_item_events=0", "--model.num_layers=1"]
WIDE = [*CATALOGUE, "--data.synthetic_users=400", "--model.hidden_size=256", "--train.batch_size=1000000"]
TRAINING = [
    (60, ["--data.synthetic_users=3000000"], "out of memory while reading the data: "),
    (500, [*CATALOGUE, "--model.hidden_size=65536"], " needed (weights "),
    (200, ["--model.name=SASRec", "--data.max_len=100000000"], "lower model.hidden_size or model.num_layers"),
    (200, [*WIDE, "--train.max_tokens=10000000"], "lower train.max_tokens"),
    (200, ["--preset=paper", "--data.max_len=5000000"], "(Adam's state "),
    (90, [*CATALOGUE, "--data.synthetic_users=5000", "--train.eval_batch_size=100000"], "(scores "),
    (300, [*WIDE, "--train.loss=sampled_softmax", "--train.negatives=100000000"], "train.negatives"),
]


def test_commands_say_what_helps(finished_run: Path, tmp_path: Path) -> None:
    cases = [
        ("train", extra * MB, [*options(tmp_path, f"run{i}"), *argv, "--train.max_steps=1"])
        for i, (extra, argv, _) in enumerate(TRAINING)
    ]
    expected = [text for _, _, text in TRAINING]
    histories = tmp_path / "histories.jsonl"
    histories.write_text("\n".join(json.dumps([str(i % 40) for i in range(200)]) for _ in range(30_000)))
    run, output = str(finished_run), tmp_path / "output.txt"
    cases += [
        ("evaluate", 0, [run]),
        ("recommend", 30 * MB, [run, f"--histories={histories}", f"--output={output}"]),
    ]
    expected += ["out of memory while ", "half of the memory that is available; use a smaller file"]
    check(cases, expected)
    assert not output.exists() and not list(tmp_path.glob("*/last.safetensors"))


def check(cases: list[tuple[str, int, list[str]]], expected: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps(cases), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert [line for line in lines if line.startswith("exit ")] == ["exit 2"] * len(cases), done.stderr
    assert len(errors) == len(cases) and "Traceback" not in done.stderr, done.stderr
    for error, text in zip(errors, expected, strict=True):
        assert text in error
