"""Links, commands, paths, names and examples of the README and of docs/ are true."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

from python_tests.support.project import ROOT, Page, pages
from recgrela.models import MODELS

PAGES = pages()
MAX_README_LINES = 170
CURRENT = [page for page in PAGES if page.path != "CHANGELOG.md"]  # the changelog names what is gone
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
each_current_page = pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.path)

FOLDERS = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
PYTHON = ("benchmarks", "build_backend", "recgrela", "tools")  # folders of modules for `python -m`
# Names that code and files no longer have.
STALE = (
    *("DEVELOPING.md", "rela_plan.cuh", "gpu_check.py benchmarks", "recgrela/options.py", "recgrela.config"),
    *("initial_values", "final_values", "initial_count", "RelaState(sums", "weight_grad"),
    *("not yet run on a GPU", "not been run on a GPU"),
)


@each_page
def test_links(page: Page) -> None:
    broken = []
    for target in re.findall(r"\]\(([^()\s]+)\)", page.prose):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page.path).parent / name if name else ROOT / page.path
        if not path.exists():
            broken.append(f"{target}: no such file")
        elif anchor and anchor not in Page(path.resolve().relative_to(ROOT).as_posix()).anchors():
            broken.append(f"{target}: no such heading")
    assert broken == []


@each_current_page
def test_paths(page: Page) -> None:
    """A path in backticks that begins with a folder of the repository exists."""
    named = re.findall(rf"`((?:{FOLDERS})/[\w./*-]*)`", page.prose)
    assert [path for path in named if not any(ROOT.glob(path.rstrip("/")))] == []


@each_current_page
def test_names(page: Page) -> None:
    """A dotted name in backticks that begins with `recgrela.` can be imported."""
    unknown = []
    for name in re.findall(r"`(recgrela(?:\.\w+)+)(?:\(\))?`", page.prose):
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:cut]))
                break
            except ModuleNotFoundError:
                continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        if found is None:
            unknown.append(name)
    assert unknown == []


def module_file(module: str) -> Path | None:
    """The file that `python -m MODULE` runs, if the repository has it."""
    path = ROOT / module.replace(".", "/")
    files = (path.with_suffix(".py"), path / "__main__.py")
    return next((file for file in files if file.exists()), None)


def commands(page: Page) -> list[list[str]]:
    """Words of each command of the bash blocks and of the inline code that starts with python."""
    lines = []
    for fence in page.fences():
        if fence.language == "bash":
            lines += re.split(r"\n|&&|;", fence.text.replace("\\\n", " "))
    lines += re.findall(r"`(python[^`\n]*)`", page.prose)
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@each_current_page
def test_commands(page: Page) -> None:
    """What a command runs exists."""
    missing = []
    for words in commands(page):
        if re.fullmatch(r"python3?", words[0]) and len(words) > 1:
            script = words[1]
            if script == "-m" and words[2].split(".")[0] in PYTHON:
                missing += [words[2]] * (module_file(words[2]) is None)
            elif script.endswith(".py"):
                missing += [script] * (not (ROOT / script).exists())
        elif words[0] == "pytest":
            paths = [word for word in words[1:] if word.startswith("python_tests")]
            missing += [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def options_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Text that names every option of a command: the help of recgrela's commands, else the source."""
    module = words[2]
    if not module.startswith("recgrela."):
        file = module_file(module)
        return file.read_text() if file else ""
    # The settings of a model are listed where the model is named.
    named = [word for word in words if word.rpartition("=")[2] in MODELS]
    flag = {"recgrela.train": "--model.name", "recgrela.compare": "--models"}.get(module)
    argv = [flag, *named] if flag and named else []
    target = f"{module}.__main__" if module == "recgrela.compare" else module
    with pytest.raises(SystemExit):
        importlib.import_module(target).main([*argv, "--help"])
    return capsys.readouterr().out


@each_current_page
def test_options(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    """The options of a command exist."""
    unknown = []
    for words in commands(page):
        if not (words[0].startswith("python") and words[1:2] == ["-m"] and words[2].split(".")[0] in PYTHON):
            continue
        options = {word.partition("=")[0] for word in words[3:] if re.match(r"--[a-z]", word)} - {"--help"}
        if options:
            known = options_of(words, capsys)
            unknown += [f"{words[2]} {option}" for option in sorted(options) if option not in known]
    assert unknown == []


@each_page
def test_examples_run(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks of a page run in one namespace, from the first to the last.

    A block below the line `<!-- excerpt -->` is part of a file and is not run.
    """
    monkeypatch.chdir(tmp_path)
    module = ModuleType(f"examples of {page.path}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    for fence in page.fences():
        if fence.language == "python" and fence.mark != "excerpt":
            # Blank lines put the block at its place in the page, for tracebacks.
            exec(compile("\n" * fence.line + fence.text, str(ROOT / page.path), "exec"), module.__dict__)


@each_current_page
def test_no_stale_names(page: Page) -> None:
    assert [name for name in STALE if name in page.text] == []


def test_the_readme_has_the_two_commands_and_examples() -> None:
    fences = list(Page("README.md").fences())
    assert {"train", "test"} <= {fence.mark for fence in fences if fence.language == "bash"}
    assert sum(fence.language == "python" for fence in fences) >= 2
