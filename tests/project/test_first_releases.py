"""Commands start on an earlier release of the same version of Python, such as the one that a distribution ships."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import ckptsurgeon as cs

CODE = """
import sys
import ckptsurgeon as cs
from ckptsurgeon.cli import main
print(sys.version_info[:3])
print(cs.inspect("a.safetensors").format)
sys.exit(main(["diff", "a.safetensors", "a.safetensors"]))
"""


def earlier() -> str:
    """Return the path of an earlier release of the Python that runs the tests; '' if there is none."""
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for folder in ("/usr/bin", "/usr/local/bin"):
        found = shutil.which(name, path=folder)
        said = subprocess.check_output([found, "-c", "import sys; print(sys.version_info[2])"]) if found else b""
        if found and int(said) < sys.version_info[2]:
            return found
    return ""


def test_commands_start_on_an_earlier_release(tmp_path: Path) -> None:
    python = earlier()
    if not python:
        pytest.skip("this machine has no earlier release of this version of Python")
    numpy = pytest.importorskip("numpy")
    from safetensors.numpy import save_file

    save_file({"w": numpy.zeros(2, "f4")}, tmp_path / "a.safetensors")
    path = os.pathsep.join([str(Path(cs.__file__).parents[1]), sysconfig.get_path("purelib")])
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-c", CODE], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "safetensors" in done.stdout
