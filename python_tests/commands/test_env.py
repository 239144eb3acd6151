"""`python -m recgrela.env`: facts, reasons and exit codes, with PyTorch's answers about a GPU replaced."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from recgrela import env
from recgrela.ops._library import _C
from recgrela.system import device as device_module
from recgrela.system import environment
from recgrela.system.device import use_device
from recgrela.system.errors import ConfigError


def test_json_of_a_real_process() -> None:
    done = subprocess.run([sys.executable, "-m", "recgrela.env", "--json"], capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["torch"] == torch.__version__
    assert found["built"]["compiler"] == _C.compiler
    assert found["cpu"]["usable"] and found["cpu"]["why_not"] is None
    assert found["cuda"]["usable"] == (found["cuda"]["why_not"] is None)
    assert len(found["cuda"]["gpus"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert done.returncode == (0 if all(g["usable"] for g in found["cuda"]["gpus"]) else 1)


def test_the_table_has_the_instruction_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert env.main(["--require", "cpu"]) == 0
    assert f"{_C.cpu_isa()}" in capsys.readouterr().out


def test_a_library_that_does_not_load(tmp_path: Path) -> None:
    package = Path(env.__file__).parent
    (tmp_path / "recgrela").mkdir()
    for part in package.iterdir():
        if part.suffix != ".so":
            (tmp_path / "recgrela" / part.name).symlink_to(part)
    (tmp_path / "recgrela" / Path(_C.__file__).name).touch()
    command = [sys.executable, "-c", "from recgrela.env import main; raise SystemExit(main(['--json']))"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["built"] is None and not found["cpu"]["usable"]
    assert "pip install -e ." in found["library_error"]


def make_gpu(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    architectures: str | None = "8.0 9.0+PTX",
    driver: tuple[int, int] | None = (13, 0),
    cuda: str = "13.0",
    visible: bool = True,
) -> None:
    """Pretend that the machine has one GPU and that the library is built for `architectures`."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    built = SimpleNamespace(**{name: getattr(_C, name) for name in dir(_C) if not name.startswith("__")})
    built.cuda_architectures, built.cuda_version = architectures, architectures and cuda
    monkeypatch.setattr(device_module, "_C", built)
    monkeypatch.setattr(device_module, "has_kernels", lambda device: architectures is not None)
    monkeypatch.setattr(device_module, "driver_cuda", lambda: driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(visible))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: "GPU")
    major, minor = capability
    properties = SimpleNamespace(name="GPU", major=major, minor=minor, total_memory=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)


@pytest.mark.parametrize(
    ("capability", "architectures", "code"),
    [
        ((8, 0), "8.0 9.0+PTX", "compiled"),
        ((8, 9), "8.0 9.0+PTX", "compiled"),
        ((9, 0), "8.0 9.0+PTX", "compiled"),
        ((12, 0), "8.0 9.0+PTX", "PTX"),
        ((7, 5), "8.0 9.0+PTX", None),
        ((9, 0), "8.0", None),
        ((9, 0), "8.0+PTX", "PTX"),
        ((8, 0), "8.6", None),
        ((9, 0), "9.0a", "compiled"),
        ((10, 0), "9.0a+PTX", None),
        ((10, 3), "10.0f", "compiled"),
        ((10, 3), "10.0a", None),
    ],
)
def test_code_for_a_capability(
    monkeypatch: Any, capability: tuple[int, int], architectures: str, code: str | None
) -> None:
    make_gpu(monkeypatch, capability, architectures)
    assert device_module.code_for(*capability) == code
    assert (device_module.gpu_obstacle() is None) == (code is not None)


@pytest.mark.parametrize(
    ("machine", "why"),
    [
        ({"capability": (7, 5)}, "need 8.0 or newer"),
        ({"capability": (9, 0), "architectures": "8.0"}, "TORCH_CUDA_ARCH_LIST=9.0"),
        ({"capability": (9, 0), "architectures": None}, "built without CUDA kernels"),
        (
            {"capability": (9, 0), "driver": (12, 4)},
            "supports CUDA up to 12.4, but recgrela is built with 13.0",
        ),
        ({"capability": (9, 0), "driver": None}, "no NVIDIA driver"),
        ({"capability": (12, 0), "cuda": "13.2"}, "whose PTX the driver cannot compile"),
    ],
)
def test_obstacles(monkeypatch: Any, machine: dict[str, Any], why: str) -> None:
    make_gpu(monkeypatch, **machine)
    assert why in (device_module.gpu_obstacle() or "")
    assert env.main(["--json"]) == 1  # a GPU is detected but cannot be used
    assert env.main(["--json", "--require", "cpu"]) == 0
    with pytest.raises(ConfigError, match="device 'cuda'") as error:
        use_device("auto")  # not silently the CPU
    assert why in str(error.value)


def test_a_gpu_on_which_the_kernels_fail(monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    make_gpu(monkeypatch, (9, 0))
    monkeypatch.setattr(
        environment, "kernel_fault", lambda device: "it did not start" if "cuda" in device else None
    )
    assert env.main(["--json", "--require", "cuda"]) == 1
    (found,) = json.loads(capsys.readouterr().out)["cuda"]["gpus"]
    assert found["why_not"] == "it did not start" and found["code"] == "compiled"
    monkeypatch.setattr(environment, "kernel_fault", lambda device: None)
    assert env.main(["--require", "cuda"]) == 0


def test_a_gpu_that_cannot_be_initialized(monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    make_gpu(monkeypatch, (9, 0))

    def fail(index: int = 0) -> None:
        raise RuntimeError("CUDA-capable device(s) is/are busy\nor unavailable")

    monkeypatch.setattr(torch.cuda, "get_device_capability", fail)
    monkeypatch.setattr(torch.cuda, "get_device_properties", fail)
    assert env.main(["--json"]) == 1
    assert "busy or unavailable" in json.loads(capsys.readouterr().out)["cuda"]["why_not"]
    with pytest.raises(ConfigError, match="busy or unavailable"):
        use_device("auto")


def test_compiled_code_runs_with_an_older_driver_of_the_major_version(monkeypatch: Any) -> None:
    make_gpu(monkeypatch, (9, 0), cuda="13.2")  # only PTX would need the newer driver
    assert device_module.gpu_obstacle() is None


def test_no_gpu_is_a_failure_only_if_one_is_required(monkeypatch: Any) -> None:
    make_gpu(monkeypatch, (9, 0), visible=False)
    assert env.main([]) == 0
    assert env.main(["--require", "cuda"]) == 1
    assert use_device("auto").type == "cpu"


def test_wrong_results_are_found(monkeypatch: Any) -> None:
    import recgrela.ops

    real = recgrela.ops.gated_rela
    monkeypatch.setattr(recgrela.ops, "gated_rela", lambda *a, **k: 1.01 * real(*a, **k))
    assert "wrong results" in (environment.kernel_fault("cpu") or "")
