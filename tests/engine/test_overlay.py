"""A source laid over a destination checkpoint's own values: the same as in one piece, in blocks, and no more memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.engine.compute import one_block, rows

from ..helpers.nursery import run_apart

PROGRAM = """
import sys
import numpy, ckptsurgeon as cs
plan = cs.transplant("src.pth", "dst.pth", **eval(sys.argv[1]))
cs.apply(plan, "out.safetensors", force=True)
assert cs.verify("out.safetensors").ok
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024)
"""
WAYS = {
    "pad": {"on_mismatch": "pad"},
    "overlap": {"on_mismatch": "overlap"},
    "vocabulary": {"vocab": "src.txt:dst.txt", "vocab_keys": ["w=0"]},
}


def lists(source: int, destination: int) -> None:
    """Token lists that share all of the shorter one, in the other order."""
    for name, tokens in (("src", range(source)), ("dst", reversed(range(destination)))):
        Path(f"{name}.txt").write_text("".join(f"t{i}\n" for i in tokens))


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_memory_does_not_grow_with_the_tensor(way: str) -> None:
    lists(3000, 4000)
    torch.save({"w": torch.ones(3000, 10_000)}, "src.pth")
    torch.save({"w": torch.zeros(4000, 10_000)}, "dst.pth")
    done = run_apart(PROGRAM, repr(WAYS[way]))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 128, f"{done.stdout} MB for tensors of 120 and 160 MB"


@pytest.mark.parametrize("limit", [4, 64, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_blocks_give_what_one_piece_gives(limit: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_block, "BLOCK_BYTES", limit)
    source = torch.arange(5 * 3 * 4).reshape(5, 3, 4).to(dtype)
    kept = -torch.arange(7 * 2 * 6).reshape(7, 2, 6)
    torch.save({"w": source}, "src.pth")
    torch.save({"w": kept.float() if dtype.is_floating_point else kept}, "dst.pth")
    wanted = torch.load("dst.pth")["w"].clone()
    wanted[:5, :2, :4] = source[:5, :2, :4].to(wanted.dtype)
    cs.apply(cs.transplant("src.pth", "dst.pth", on_mismatch="overlap"), "out.pth")
    assert torch.equal(torch.load("out.pth")["w"], wanted)
    assert cs.verify("out.pth").ok


@pytest.mark.costly
@pytest.mark.parametrize("limit", [4, 64, 1 << 20])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("is_drawn", [False, True])
def test_each_part_is_padded_at_its_end(limit: int, dim: int, is_drawn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_block, "BLOCK_BYTES", limit)
    monkeypatch.setattr(rows, "BLOCK_BYTES", limit)
    source = torch.arange(6 * 6 * 3.0).reshape(6, 6, 3)
    shape = [10, 6, 4] if dim == 0 else [6, 10, 4]
    wanted = torch.full(shape, -1.0)
    for part in range(2):
        begin, old = (5 * part, 3 * part)
        inside, theirs = slice(begin, begin + 3), slice(old, old + 3)
        if dim == 0:
            wanted[inside, :, :3] = source[theirs]
        else:
            wanted[:, inside, :3] = source[:, theirs]
    torch.save({"w": source}, "src.pth")
    torch.save({"w": torch.full(shape, -1.0)}, "dst.pth")
    Path("dst.yaml").write_text(f"model: {{tensors: {{w: {{shape: {shape}, init: -1}}}}}}\n")
    plan = cs.transplant("src.pth", "dst.yaml" if is_drawn else "dst.pth", on_mismatch=f"pad:parts=2,dim={dim}")
    cs.apply(plan, "out.pth")
    assert torch.equal(torch.load("out.pth")["w"], wanted)
    assert cs.verify("out.pth").ok
    at = (9, 0, 0) if dim == 0 else (0, 9, 0)
    for place, is_from_source in ((tuple(max(0, one - 4) for one in at), True), (at, False)):
        changed = wanted.clone()
        changed[place] = 7
        torch.save({"w": changed}, "changed.pth")
        failed = bool(cs.verify("changed.pth", plan=plan).failed)
        assert failed == (is_from_source or not is_drawn)  # what was drawn is not compared


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ("pad:parts=4", "dimension 0 has a size of 6, which does not divide into 4 parts"),
        ("pad:parts=3", "dimension 0 has a size of 10, which does not divide into 3 parts"),
        ("pad:parts=0", "the number of parts is 0"),
        ("pad:parts=2,dim=3", "there is no dimension 3"),
    ],
)
def test_parts_that_cannot_be_are_an_error(policy: str, why: str) -> None:
    torch.save({"w": torch.ones(6, 6, 3)}, "src.pth")
    torch.save({"w": torch.ones(10, 6, 4)}, "dst.pth")
    with pytest.raises(cs.PlanError, match=why):
        cs.transplant("src.pth", "dst.pth", on_mismatch=policy)


@pytest.mark.parametrize("limit", [4, 64, 1 << 20])
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_of_tokens_lie_over_kept_rows(limit: int, axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_block, "BLOCK_BYTES", limit)
    Path("src.txt").write_text("a\nb\nc\nd\n")
    Path("dst.txt").write_text("x\nd\na\ny\nc\nz\n")
    source, kept = torch.arange(4 * 5.0).reshape(4, 5), -1 - torch.arange(6 * 5.0).reshape(6, 5)
    wanted = kept.clone()
    for place, row in ((1, 3), (2, 0), (4, 2)):
        wanted[place] = source[row]
    turned = (lambda one: one.t().contiguous()) if axis else (lambda one: one)
    torch.save({"w": turned(source), "bias": turned(source)}, "src.pth")
    torch.save({"w": turned(kept), "bias": turned(kept)}, "dst.pth")
    made = cs.transplant("src.pth", "dst.pth", vocab="src.txt:dst.txt", vocab_keys=[f"w={axis}", f"bias={axis}"])
    cs.apply(made, "out.pth")
    for value in torch.load("out.pth").values():
        assert torch.equal(turned(value), wanted)
    assert cs.verify("out.pth").ok


@pytest.mark.parametrize("at", [(0, 0), (3, 3), (0, 5), (6, 5)])
def test_one_changed_value_is_found(at: tuple[int, int]) -> None:
    torch.save({"w": torch.ones(4, 4)}, "src.pth")
    torch.save({"w": torch.zeros(7, 6)}, "dst.pth")
    plan = cs.transplant("src.pth", "dst.pth", on_mismatch="pad")
    made = torch.zeros(7, 6)
    made[:4, :4] = 1
    torch.save({"w": made}, "out.pth")
    assert cs.verify("out.pth", plan=plan).ok
    made[at] = 5
    torch.save({"w": made}, "out.pth")
    (fault,) = cs.verify("out.pth", plan=plan).failed
    assert int(fault.why.rpartition("at byte ")[2]) // 4 == at[0] * 6 + at[1]


def test_what_is_covered_may_be_anything() -> None:
    torch.save({"w": torch.ones(4, 4)}, "src.pth")
    torch.save({"w": torch.full((7, 6), float("nan"))}, "dst.pth")
    cs.apply(cs.transplant("src.pth", "dst.pth", on_mismatch="pad"), "out.pth")
    assert not torch.load("out.pth")["w"][:4, :4].isnan().any()


def test_a_damaged_record_under_a_source_is_an_error() -> None:
    torch.save({"w": torch.ones(4, 4)}, "src.pth")
    torch.save({"w": torch.full((7, 6), 3.0)}, "dst.pth")
    raw = bytearray(Path("dst.pth").read_bytes())
    at = raw.index(torch.full((7, 6), 3.0).numpy().tobytes())
    raw[at + 100] ^= 1
    Path("dst.pth").write_bytes(raw)
    with pytest.raises(cs.FormatError, match="checksum"):
        cs.apply(cs.transplant("src.pth", "dst.pth", on_mismatch="pad"), "out.pth")
    assert not Path("out.pth").exists()
