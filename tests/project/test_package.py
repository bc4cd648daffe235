"""What is published: an sdist and a wheel that say the same, hold what they must, and run where the checkout is not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path

import pytest
import torch
import yaml

import ckptsurgeon as cs

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

Run = Callable[..., subprocess.CompletedProcess[str]]


def command(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program that sees nothing of the checkout but what it is told."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "CKPT"))}
    done = subprocess.run(
        [str(one) for one in arguments],
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"
    return done


def build(root: Path, to: Path, *what: str) -> None:
    # Without isolation: the backend is a package of the extra dev, and nothing is fetched.
    command(sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", to, root)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist, and the wheel that is built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel in it, and behind it the packages of this one without what is installed editably."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    # Without what is compiled: of 700 modules the tests import some.
    options = ("-q", "--no-deps", "--no-index", "--no-compile")
    command(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel)
    told = command(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    places = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    Path(told.stdout.strip(), "packages_behind.pth").write_text("".join(f"{place}\n" for place in places))
    return folder


def tracked(*folders: str) -> set[str]:
    told = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True)
    if told.returncode:
        pytest.skip("not a git checkout")
    # Those too that are not committed yet: what is there is what is built.
    new = subprocess.run(
        ["git", "ls-files", "-o", "--exclude-standard", *folders], cwd=ROOT, capture_output=True, text=True
    )
    return {name for name in [*told.stdout.splitlines(), *new.stdout.splitlines()] if (ROOT / name).is_file()}


def packed(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


@pytest.mark.long
def test_twine_finds_nothing_to_complain_of(dist: Path) -> None:
    said = command(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir(), NO_COLOR="1").stdout
    assert said.count("PASSED") == 2, said


@pytest.mark.long
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in names if name.startswith("ckptsurgeon/")}
    assert package == tracked("ckptsurgeon")
    assert "ckptsurgeon/py.typed" in package
    beside = {name.partition("/")[2] for name in names - package}
    assert beside == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}


def test_the_package_has_no_files_that_a_merge_left() -> None:
    suffixes = {Path(name).suffix for name in tracked("ckptsurgeon")}
    assert suffixes == {".css", ".html", ".js", ".json", ".jsonl", ".py", ".pyi", ".txt", ".typed"}


@pytest.mark.long
def test_the_sdist_holds_what_tests_and_builds(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    names = packed(sdist)
    folders = ("ckptsurgeon", "tests", "fixtures", "docs")
    assert {name for name in names if name.startswith(tuple(f"{one}/" for one in folders))} == tracked(*folders)
    beside = {name for name in names if "/" not in name}
    assert beside == {"PKG-INFO", *(name for name in tracked(".") if "/" not in name)}


@pytest.mark.long
def test_the_sdist_builds_the_wheel_that_the_checkout_builds(wheel: Path, tmp_path: Path) -> None:
    build(ROOT, tmp_path, "--wheel")
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


@pytest.mark.long
def test_the_metadata_is_complete(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        said = Parser().parsestr(archive.read(name).decode())
    assert (said["Name"], said["Version"]) == ("ckptsurgeon", cs.__version__)
    assert said["License-Expression"] == "Apache-2.0"
    assert said["Requires-Python"] == ">=3.11"
    assert said["Description-Content-Type"] == "text/markdown"
    assert said["Summary"] == PROJECT["description"]
    assert set(said.get_all("Provides-Extra") or ()) == PROJECT["optional-dependencies"].keys()
    assert "Typing :: Typed" in said.get_all("Classifier")


@pytest.mark.long
def test_the_installed_program_runs_where_the_checkout_is_not(fresh: Path, tmp_path: Path) -> None:
    torch.save({"encoder.weight": torch.ones(4, 4), "head.bias": torch.zeros(3)}, "small.pth")
    ckpt = fresh / "bin/ckpt"
    assert ckpt.read_text().splitlines()[0].startswith(f"#!{fresh}")
    assert command(ckpt, "--version", cwd=tmp_path).stdout == f"ckpt {cs.__version__}\n"
    told = command(ckpt, "inspect", "small.pth", cwd=tmp_path).stdout
    assert "encoder.weight" in told
    assert "2 tensors" in told
    command(ckpt, "filter", "small.pth", "--exclude", "head", "-o", "out.safetensors", cwd=tmp_path)
    assert "verified" in command(ckpt, "verify", "out.safetensors", cwd=tmp_path).stdout


@pytest.mark.long
def test_what_ran_is_the_installed_package(fresh: Path, tmp_path: Path) -> None:
    code = "import ckptsurgeon.__main__, importlib.metadata as m; print(ckptsurgeon.__file__, m.version('ckptsurgeon'))"
    file, version = command(fresh / "bin/python", "-c", code, cwd=tmp_path).stdout.split()
    assert Path(file).is_relative_to(fresh)
    assert version == cs.__version__


@pytest.mark.long
def test_the_installed_package_finds_its_own_files(fresh: Path, tmp_path: Path) -> None:
    """Every verb, format, method and list of words is found in the folders of the package."""
    code = (
        "from ckptsurgeon.util.registry import module_names as n; from importlib.resources import files; "
        "print(*(len(n('ckptsurgeon.' + p)) for p in ('cli.verbs', 'cli.verbs.lora', 'formats', 'methods.merge', 'destinations')), "
        "sum(1 for _ in (files('ckptsurgeon') / 'trainer/speech/words').iterdir()))"
    )
    there = command(fresh / "bin/python", "-c", code, cwd=tmp_path).stdout
    here = command(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT)).stdout
    assert there == here


def test_the_version_stands_in_one_place() -> None:
    assert "version" not in PROJECT
    assert cs.__version__ == yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d+)?", cs.__version__)
    here = {path.name for path in (ROOT / "ckptsurgeon").rglob("*.py") if f'"{cs.__version__}"' in path.read_text()}
    assert here == {"version.py"}


def test_the_citation_names_no_one_and_no_address_that_is_not_there() -> None:
    """https://github.com/citation-file-format/citation-file-format/blob/main/schema-guide.md: required, and allowed."""
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert said.keys() == {
        "cff-version", "message", "title", "type", "abstract", "authors", "version", "license", "keywords",
    }  # fmt: skip
    assert (said["cff-version"], said["type"], said["title"]) == ("1.2.0", "software", PROJECT["name"])
    assert said["license"] == PROJECT["license"]
    assert said["authors"] == PROJECT["authors"] == [{"name": "The ckptsurgeon developers"}]
    assert all(isinstance(one, str) for one in said["keywords"])
    assert len(set(said["keywords"])) == len(said["keywords"])
