"""What a command imports, and how its process ends: both take longer than many commands themselves."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ckptsurgeon.cli import RARELY, main

LISTED = """
import sys
from ckptsurgeon.__main__ import main
code = main()
print(code, *sys.modules)
"""
COLLECTIONS = """
import gc
from ckptsurgeon.__main__ import main
main()
print(gc.get_threshold(), gc.get_freeze_count())
"""
UNUSED = (
    "ckptsurgeon.analysis.inspection", "ckptsurgeon.planning.plan", "ckptsurgeon.planning.keys",
    "ckptsurgeon.storage.write", "ckptsurgeon.planning.target", "concurrent.futures", "logging", "rich", "torch",
)  # fmt: skip
UNUSED_BY_FITS = {
    "ckptsurgeon.api.resize.resize", "ckptsurgeon.planning.layouts.families.vit", "ckptsurgeon.methods.lora.reading",
    "numpy", "torch",
}  # fmt: skip


@pytest.mark.long
def test_a_check_imports_nothing_that_only_other_verbs_need(tmp_path: Path) -> None:
    save_file({"x": np.ones((4, 4), np.float32)}, tmp_path / "x.safetensors")
    command = [sys.executable, "-c", LISTED, "check", "-q", str(tmp_path / "x.safetensors")]
    code, *modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert code == "0"
    assert not set(UNUSED) & set(modules)


@pytest.mark.long
def test_fits_of_another_head_imports_no_layouts_and_no_numpy(tmp_path: Path) -> None:
    for classes in (2, 5):
        tensors = {"body.weight": np.ones((4, 4), np.float32), "head.weight": np.ones((classes, 4), np.float32)}
        save_file(tensors, tmp_path / f"{classes}.safetensors")
    command = [sys.executable, "-c", LISTED, "fits", "-q", *(str(tmp_path / f"{n}.safetensors") for n in (2, 5))]
    code, *modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert code == "1"
    assert "ckptsurgeon.planning.transplant.transplant" in modules
    assert not UNUSED_BY_FITS & set(modules)


def test_a_config_of_transformers_is_read_without_other_toolkits(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    code = "import sys; from ckptsurgeon.destinations._load import code_named; print(code_named(sys.argv[1]), *sys.modules)"
    command = [sys.executable, "-c", code, str(tmp_path / "config.json")]
    modules = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "ckptsurgeon.destinations.transformers" in modules
    assert not {"yaml", "ckptsurgeon.destinations.espnet", "ckptsurgeon.destinations.speechbrain"} & modules


def test_python_looks_for_no_unreachable_objects_when_a_command_ends() -> None:
    command = [sys.executable, "-c", COLLECTIONS, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    thresholds, frozen = done.stdout.splitlines()[-1].rsplit(maxsplit=1)
    assert thresholds == str(RARELY)
    assert int(frozen) > 1000


def test_nothing_is_collected_during_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    thresholds = gc.get_threshold()

    def note(phase: str, info: dict[str, Any]) -> None:
        found.append(info["generation"])

    def invoke(args: list[str], as_json: bool) -> int:
        gc.callbacks.append(note)
        kept = [[one] for one in range(50_000)]
        gc.callbacks.remove(note)
        return len(kept)

    monkeypatch.setattr("ckptsurgeon.cli._invoke", invoke)
    assert main(["inspect"]) == 50_000
    assert found == []
    assert gc.get_threshold() == thresholds
