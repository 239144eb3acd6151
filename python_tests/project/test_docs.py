"""Checks of the links, paths, names, commands and examples in the README and in docs/."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from python_tests.support.project import ROOT, Page, pages
from recgrela.models import MODELS

MAX_README_LINES = 170
PYTHON = ("benchmarks", "build_backend", "recgrela", "tools")  # folders of modules for `python -m`
# Folders of sources. Pages also name folders that commands create, such as build/ and runs/.
FOLDERS = "|".join((*PYTHON, "csrc", "docs", "python_tests"))
# Names that code and files no longer have.
STALE = (
    *("DEVELOPING.md", "rela_plan.cuh", "gpu_check.py benchmarks", "recgrela/options.py", "recgrela.config"),
    *("initial_values", "final_values", "initial_count", "RelaState(sums", "weight_grad"),
    *("not yet run on a GPU", "not been run on a GPU"),
)

PAGES = pages()
CURRENT = [page for page in PAGES if page.path != "CHANGELOG.md"]  # the changelog names removed things
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
each_current_page = pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.path)


def broken_links(page: Page) -> list[str]:
    """Links to files or headings that do not exist; other sites are not visited."""
    broken = []
    for target in re.findall(r"\]\(([^()\s]+)\)", page.prose):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        path = page.file.parent / name if name else page.file
        if not path.exists() or (anchor and anchor not in Page(str(path.resolve())).anchors()):
            broken.append(target)
    return broken


def missing_paths(page: Page) -> list[str]:
    """Paths in backticks that begin with a folder of the repository and do not exist."""
    named = re.findall(rf"`((?:{FOLDERS})/[\w./*-]*)`", page.prose)
    return [path for path in named if not any(ROOT.glob(path.rstrip("/")))]


def unknown_names(page: Page) -> list[str]:
    """Dotted names in backticks that begin with `recgrela.` and cannot be imported."""
    return [name for name in re.findall(r"`(recgrela(?:\.\w+)+)(?:\(\))?`", page.prose) if not is_name(name)]


def is_name(name: str) -> bool:
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def commands(page: Page) -> list[list[str]]:
    """Words of each command of the bash blocks and of the inline code that starts with python."""
    lines = []
    for fence in page.fences():
        if fence.language == "bash":
            lines += re.split(r"\n|&&|;", fence.text.replace("\\\n", " "))
    lines += re.findall(r"`(python[^`]*)`", page.prose)
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def module_file(module: str) -> Path | None:
    """The file that `python -m MODULE` runs, if the repository has it."""
    path = ROOT / module.replace(".", "/")
    files = (path.with_suffix(".py"), path / "__main__.py")
    return next((file for file in files if file.exists()), None)


def runs_ours(words: list[str]) -> bool:
    """Reports whether a command runs a module of the repository."""
    return bool(re.match("python", words[0])) and words[1:2] == ["-m"] and words[2].split(".")[0] in PYTHON


def missing_programs(page: Page) -> list[str]:
    """Modules, scripts and folders of tests that commands name and the repository does not have."""
    missing = []
    for words in commands(page):
        if runs_ours(words):
            missing += [words[2]] * (module_file(words[2]) is None)
        elif words[0].startswith("python") and words[1:] and words[1].endswith(".py"):
            missing += [words[1]] * (not (ROOT / words[1]).exists())
        elif words[0] == "pytest":
            paths = [word for word in words[1:] if word.startswith("python_tests")]
            missing += [path for path in paths if not (ROOT / path).exists()]
    return missing


def options_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Text that names every option of a command: the help of recgrela's commands, else the source."""
    module = words[2]
    if not module.startswith("recgrela."):
        return module_file(module).read_text()
    # The help lists the settings of the models that are named.
    named = [word for word in words if word.rpartition("=")[2] in MODELS]
    flag = {"recgrela.train": "--model.name", "recgrela.compare": "--models"}.get(module)
    argv = [flag, *named] if flag and named else []
    if module == "recgrela.data":
        argv = words[3:4]  # stats, convert or get
    target = f"{module}.__main__" if module_file(module).name == "__main__.py" else module
    with pytest.raises(SystemExit):
        importlib.import_module(target).main([*argv, "--help"])
    return capsys.readouterr().out


def unknown_options(page: Page, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Options that the commands of the repository do not have."""
    unknown = []
    for words in commands(page):
        if runs_ours(words) and module_file(words[2]):
            options = {word.partition("=")[0] for word in words[3:] if re.match("--[a-z]", word)} - {"--help"}
            known = options_of(words, capsys) if options else ""
            unknown += [
                f"{words[2]} {option}"
                for option in sorted(options)
                if not re.search(rf"{re.escape(option)}(?![\w.])", known)
            ]
    return unknown


@each_page
def test_links(page: Page) -> None:
    assert broken_links(page) == []


@each_current_page
@pytest.mark.parametrize("find", [missing_paths, unknown_names, missing_programs])
def test_paths_names_and_programs(page: Page, find: Callable[[Page], list[str]]) -> None:
    assert find(page) == []


@each_current_page
def test_options(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    assert unknown_options(page, capsys) == []


@each_current_page
def test_no_stale_names(page: Page) -> None:
    assert [name for name in STALE if name in page.text] == []


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
            exec(compile("\n" * fence.line + fence.text, str(page.file), "exec"), module.__dict__)


def test_the_checks_find_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "page.md"
    file.write_text(
        "# Heading two\n[a](page.md#heading-two) [b](page.md#heading) [c](gone.md)\n"
        "`recgrela/ops/*.py` `recgrela/gone.py` `runs/NAME/` `recgrela.ops.mlp` `recgrela.ops.gone`\n"
        "`python -m tools.gone`\n"
        "```bash\npython -m recgrela.train --model.name SIGMA --model.flip 3 --model.gone 3 # comment\n"
        "python -m tools.ptxas --gone && pytest python_tests/gone\n```\n"
    )
    page = Page(str(file))
    assert broken_links(page) == ["page.md#heading", "gone.md"]
    assert missing_paths(page) == ["recgrela/gone.py"]
    assert unknown_names(page) == ["recgrela.ops.gone"]
    assert missing_programs(page) == ["python_tests/gone", "tools.gone"]
    assert unknown_options(page, capsys) == ["recgrela.train --model.gone", "tools.ptxas --gone"]


def test_the_readme_is_short() -> None:
    assert len(Page("README.md").text.splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("name", ["train", "test"])
def test_the_readme_has_the_command_that_ci_runs(name: str) -> None:
    (fence,) = [fence for fence in Page("README.md").fences() if fence.mark == name]
    assert fence.language == "bash"
