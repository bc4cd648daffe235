"""Copies go on while other tensors are computed; what ends one of them ends both, and nothing is left."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.engine import copy_bytes
from ckptsurgeon.engine.compute import compute_steps


def write() -> cs.Plan:
    torch.save({"big": torch.ones(12 << 20), "small": torch.ones(5, 3)}, "src.pth")
    torch.save({"big": torch.zeros(12 << 20), "small": torch.zeros(4, 3)}, "dst.pth")
    return cs.transplant("src.pth", "dst.pth", on_mismatch="slice")


def copiers() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("copy")]


def hooked(monkeypatch: pytest.MonkeyPatch, before: Callable[[], None]) -> None:
    original = compute_steps.compute_steps

    def computed(*args: Any) -> None:
        before()
        original(*args)

    monkeypatch.setattr(compute_steps, "compute_steps", computed)


def test_copies_go_on_while_others_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    hooked(monkeypatch, lambda: seen.append(len(copiers())))
    receipt = cs.apply(write(), "out.pth")
    assert seen == [copy_bytes.THREADS]
    assert not copiers()
    assert receipt.nbytes_read == (12 << 20) * 4 + 15 * 4
    assert cs.verify("out.pth").ok


@pytest.mark.costly
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_ends_the_computing_ends_the_copies(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = write()

    def fail() -> None:
        raise error

    hooked(monkeypatch, fail)
    with pytest.raises(error):
        cs.apply(plan, "out.pth")
    assert not copiers()
    assert sorted(os.listdir()) == ["dst.pth", "src.pth"]


@pytest.mark.long
def test_a_copy_that_fails_while_others_are_computed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = write()
    raw = bytearray(Path("src.pth").read_bytes())
    raw[len(raw) // 2] ^= 1
    stat = os.stat("src.pth")
    Path("src.pth").write_bytes(raw)
    os.utime("src.pth", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(cs.FormatError, match="checksum"):
        cs.apply(plan, "out.pth")
    assert not copiers()
    assert sorted(os.listdir()) == ["dst.pth", "src.pth"]


def test_a_failed_copy_ends_what_is_computed_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"big": torch.ones(12 << 20), "wide": torch.ones(3000, 1000)}, "src.pth")
    torch.save({"big": torch.zeros(12 << 20), "wide": torch.zeros(3000, 900)}, "dst.pth")
    plan = cs.transplant("src.pth", "dst.pth", on_mismatch="slice")
    failed, computed = threading.Event(), []
    written = compute_steps.blockwise

    def no_space(*args: Any) -> bool:
        failed.set()
        raise cs.OutputError("no space is left.")

    def counted(*args: Any) -> Any:
        compute = written(*args)
        assert failed.wait(30)
        while not any(one._failure for one in workers):
            pass

        def block(*given: Any) -> Any:
            computed.append(given)
            return compute(*given)

        return block

    workers: list[Any] = []
    made = copy_bytes._Worker.__init__

    def noted(self: Any, *args: Any) -> None:
        made(self, *args)
        workers.append(self)

    monkeypatch.setattr(copy_bytes._Worker, "__init__", noted)
    monkeypatch.setattr(copy_bytes._Worker, "_in_kernel", no_space)
    monkeypatch.setattr(compute_steps, "blockwise", counted)
    with pytest.raises(cs.OutputError, match="no space"):
        cs.apply(plan, "out.pth")
    assert not computed
    assert sorted(os.listdir()) == ["dst.pth", "src.pth"]
