"""``make wheels``: packages are laid out for another machine, where the tests find them."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests import ROOT
from tests.wheels import BARE, LACKING, main

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def wheel(name: str, *, size: int = 10) -> None:
    """Write a wheel of one module, whose command has no place on another machine."""
    path = Path("index") / f"{name}-1.0-py3-none-any.whl"
    path.parent.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", "#" * size)
        file.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: missing\n"
        )
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/entry_points.txt", f"[console_scripts]\n{name} = {name}:main\n")
        file.writestr(f"{info}/RECORD", "")


@pytest.fixture(autouse=True)
def _no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "index")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


@pytest.mark.long
def test_wheels_are_unpacked_for_the_other_python(capsys: pytest.CaptureFixture[str]) -> None:
    wheel("lone_one")
    wheel("lone_two")
    main(["--python", "3.13", "--also", "lone_two"], to=Path("wheels"), packages=["lone_one"])
    assert "3.13: 2 packages, 0.0 MiB" in capsys.readouterr().out
    assert {path.name for path in Path("wheels").iterdir()} == {"3.13"}
    assert {path.name for path in Path("wheels/3.13").iterdir()} == {
        "lone_one.py", "lone_two.py", "lone_one-1.0.dist-info", "lone_two-1.0.dist-info"
    }  # fmt: skip
    main(["--python", "3.13"], to=Path("wheels"), packages=["lone_one"])
    assert not Path("wheels/3.13/lone_two.py").exists()


@pytest.mark.long
def test_a_machine_without_pytest_is_told_how_to_find_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There ``python3 -m pytest`` ended in "No module named pytest"."""
    for name in ("lone_one", "lone_two"):
        wheel(name)
    monkeypatch.setattr("tests.wheels.BARE", ("lone_two",))
    main(["--bare"], to=Path("wheels"), packages=["lone_one"])
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == "Run there: PYTHONPATH=wheels/3.12 python3 -m pytest -m gpu"
    assert told.removeprefix("Run there: ") in (ROOT / "CONTRIBUTING.md").read_text()
    main([], to=Path("wheels"), packages=["lone_one"])
    assert "Run there" not in capsys.readouterr().out


@pytest.mark.long
def test_a_folder_that_is_too_large_is_refused_and_the_old_one_kept() -> None:
    wheel("lone_one", size=2**20)
    with pytest.raises(SystemExit, match=r"would have 1\.0 MiB, more than 0\.5\. Largest: "):
        main(["--limit", "0.5"], to=Path("wheels"), packages=["lone_one"])
    assert list(Path("wheels").iterdir()) == []


@pytest.mark.long
def test_a_package_that_cannot_be_fetched_is_named() -> None:
    Path("index").mkdir()
    with pytest.raises(SystemExit, match="pip could not fetch lone_one for Python 3.12"):
        main([], to=Path("wheels"), packages=["lone_one"])
    assert list(Path("wheels").iterdir()) == []


def test_what_is_laid_out_is_found_by_the_tests_and_by_what_they_start() -> None:
    Path("tests").mkdir()
    Path("tests/__init__.py").write_text((ROOT / "tests/__init__.py").read_text())
    Path(f"wheels/{HERE}").mkdir(parents=True)
    Path(f"wheels/{HERE}/lone_one.py").write_text("print('found')\n")
    Path("beside.py").write_text("import lone_one\n")
    code = "import tests, subprocess, sys; subprocess.run([sys.executable, '-c', 'import beside'], cwd='/', check=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("found\n", 0), done.stderr
    Path(f"wheels/{HERE}").rename("wheels/3.1")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "No module named 'beside'" in done.stderr


def test_every_package_is_one_whose_version_is_pinned() -> None:
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    assert {name.lower().replace("_", "-") for name in (*LACKING, *BARE)} <= pinned
