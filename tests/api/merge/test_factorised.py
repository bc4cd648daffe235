"""Merges of whole matrices by their singular values: memory, verifying, tensors of all kinds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.methods.merge.arithmetic import spectra

from ...helpers.merge_arrays import METHODS, merge
from ...helpers.nursery import run_apart

Run = Callable[..., Any]

SPECTRAL = [name for name, one in METHODS.items() if one.held is not None and not one.statistics]
EVERY = pytest.mark.parametrize("method", SPECTRAL)
NAMES = ("base", "a", "b", "c")
FILES = [f"{name}.safetensors" for name in NAMES[1:]]


def save(shape: tuple[int, int] = (24, 36), dtype: torch.dtype = torch.float32) -> None:
    """A base and three models of it, with tensors of all kinds."""
    torch.manual_seed(0)
    base = {"w": torch.randn(shape), "conv": torch.randn(4, 3, 2, 2), "v": torch.randn(9), "t": torch.randn(())}
    for number, name in enumerate(NAMES):
        state = {key: (one + 0.1 * bool(number) * torch.randn(one.shape)).to(dtype) for key, one in base.items()}
        state |= {"n": torch.tensor(number), "none": torch.zeros(0, 4, dtype=dtype)}
        save_file(state, f"{name}.safetensors")


def planned(method: str, **given: Any) -> cs.Plan:
    return cs.merge(FILES, method=method, base="base.safetensors", **given)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_all_kinds_are_merged_and_verified(method: str, dtype: torch.dtype) -> None:
    save(dtype=dtype)
    cs.apply(planned(method), "out.safetensors")
    made, models = load_file("out.safetensors"), [load_file(name) for name in ("base.safetensors", *FILES)]
    wide = "f8" if dtype == torch.float64 else "f4"
    for key in ("w", "conv", "v", "t"):
        base, *several = (one[key].double().numpy().astype(wide) for one in models)
        wanted = torch.tensor(merge(method, several, base)).to(dtype)
        assert made[key].dtype == dtype
        torch.testing.assert_close(made[key], wanted, rtol=1e-6, atol=1e-6)
    assert (int(made["n"]), tuple(made["none"].shape)) == (3, (0, 4))
    found = cs.verify("out.safetensors")
    assert (found.ok, found.near) == (True, 0)


@pytest.mark.costly
@EVERY
def test_the_memory_is_known_before_anything_is_read(method: str, ckpt: Run) -> None:
    save((600, 900))
    plan = planned(method)
    assert plan.costs is not None
    need = plan.costs.memory_nbytes
    assert need > 4 * 600 * 900 * 4
    with pytest.raises(cs.PlanError, match=r"w: computing this tensor takes .* whole matrices and their") as error:
        planned(method, memory="20MB")
    least = int(error.value.hint.split("--memory ")[1].split("B")[0])
    assert 20e6 < least <= need
    assert "or use another merge method for this tensor" in error.value.hint
    cs.apply(planned(method, memory=f"{least}B"), "out.safetensors")
    planned(method, memory="20MB", parameters={"matrices": {"w": False}})  # merged as a vector is, slice by slice


MERGE = """
import json, sys
import ckptsurgeon as cs
models = ["a.safetensors", "b.safetensors", "c.safetensors"]
for method, output in json.loads(sys.argv[1]).items():
    cs.apply(cs.merge(models, method=method, base="base.safetensors"), output)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def merged_apart(outputs: dict[str, str]) -> int:
    """Merge by each method in one small process of their own, with one thread, and return its most memory in bytes."""
    done = run_apart(MERGE, json.dumps(outputs))
    assert not done.returncode, done.stderr
    return int(done.stdout) << 10


@cache
def least_memory(method: str) -> int:
    """The memory that a merge takes whatever the size of the tensors."""
    save((8, 8))
    return merged_apart({method: "small.safetensors"})


@pytest.mark.long
@pytest.mark.each_value
@EVERY
@pytest.mark.parametrize("shape", [(1000, 1000), (400, 2500), (2500, 400)])
def test_no_more_memory_is_taken_than_is_said(method: str, shape: tuple[int, int]) -> None:
    before = least_memory(method)
    save(shape)
    costs = planned(method).costs
    assert costs is not None
    taken = merged_apart({method: "out.safetensors"}) - before
    assert 0.1 * costs.memory_nbytes < taken < costs.memory_nbytes + (4 << 20)


def test_the_number_of_threads_makes_no_difference() -> None:
    save((300, 400), torch.float64)  # in float32, nearly all values are rounded to the same
    names = {threads: {method: f"{threads}/{method}.safetensors" for method in SPECTRAL} for threads in ("1", "2")}
    for threads in names:
        Path(threads).mkdir()
    merged_apart(names["1"])
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}  # which are read at import
    subprocess.run([sys.executable, "-c", MERGE, json.dumps(names["2"])], env=environment, check=True, timeout=300)
    for method in SPECTRAL:
        one, two = (load_file(f"{threads}/{method}.safetensors")["w"] for threads in ("1", "2"))
        assert torch.equal(one, two), method


@EVERY
def test_another_lapack_may_round_the_last_bits_and_no_more(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    save()
    cs.apply(planned(method), "out.safetensors")
    factorised = spectra.factorised

    def rounded(*given: Any) -> Any:
        return np.nextafter(factorised(*given), np.float32(np.inf))

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules[METHODS[method].function.__module__], "factorised", rounded)
        found = cs.verify("out.safetensors")
    assert (found.ok, found.near) == (True, 1)
    data = bytearray(Path("out.safetensors").read_bytes())
    at = data.index(load_file("out.safetensors")["w"][3].numpy().tobytes())
    data[at + 2] ^= 0x40
    Path("out.safetensors").write_bytes(data)
    assert {one.key for one in cs.verify("out.safetensors").failed} == {"w"}


@EVERY
def test_a_change_that_is_not_finite_names_the_key_and_the_model(method: str, ckpt: Run) -> None:
    save()
    state = load_file("b.safetensors")
    state["w"][1, 2] = torch.inf
    save_file(state, "b.safetensors")
    with pytest.raises(cs.PlanError, match=r"w: the change of model 2 has NaN or infinite values") as error:
        cs.apply(planned(method), "out.safetensors")
    assert "matrices:KEY=false" in error.value.hint
    assert not Path("out.safetensors").exists()
    cs.apply(planned(method, parameters={"matrices": {"w": False}}), "out.safetensors")
