"""Carrying a plan out: the right bytes, in bounded memory, every format, the same bytes each time."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.engine.compute import one_block

from ..helpers.declare import declare
from ..helpers.nursery import run_apart
from ..helpers.torch_files import bytes_of, saved, variety

OPAQUE = ("sparse", "csr", "quantised", "per_channel", "meta")


def result(path: str) -> dict[str, torch.Tensor]:
    found = cs.open_checkpoint(path, unwrap=False)
    return {key: found.tensor(key) for key in found}


def transplanted(
    source: Any, destination: str, output: str = "out.safetensors", **options: Any
) -> dict[str, torch.Tensor]:
    apply_options = {k: options.pop(k) for k in ("to", "max_shard_size") if k in options}
    plan = cs.transplant(source, destination, **options)
    cs.apply(plan, output, force=True, **apply_options)
    checked = cs.verify(output)
    assert checked.ok, checked.failed
    assert checked.checked == len(plan.steps)
    return result(output)


@pytest.mark.parametrize(
    ("output", "options"),
    [
        ("out.safetensors", {}),
        ("out.pth", {}),
        ("out.bin", {}),
        ("folder", {}),
        ("shards", {"max_shard_size": "200B"}),
        ("shards_pth", {"max_shard_size": "200B", "to": "pth"}),
        ("noname", {"to": "pth"}),
    ],
)
def test_every_variety_arrives_in_every_format(output: str, options: dict[str, Any]) -> None:
    lacks = (
        OPAQUE
        if output.endswith((".pth", ".bin")) or options.get("to") == "pth"
        else (*OPAQUE, "complex128", "complex32")
    )
    Path("src.pth").write_bytes(saved(variety()))
    wanted = {key: value for key, value in variety().items() if key not in lacks}
    torch.save(wanted, "dst.pth")
    found = transplanted("src.pth", "dst.pth", output, **options)
    assert set(found) == set(wanted)
    for key, tensor in wanted.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape), key
        assert bytes_of(found[key]) == bytes_of(tensor), key


def test_what_comes_out_loads_strictly_in_torch_and_safetensors() -> None:
    model = torch.nn.TransformerEncoderLayer(16, 2, 32)
    torch.save({"model": {f"module.{k}": v for k, v in model.state_dict().items()}}, "src.pth")
    Path("dst.yaml").write_text(
        "model: {_target_: torch.nn.TransformerEncoderLayer, d_model: 16, nhead: 2, dim_feedforward: 32}"
    )
    plan = cs.transplant("src.pth", "dst.yaml", exclude=["norm2"])
    for output, load in (("o.safetensors", load_file), ("o.pth", lambda p: torch.load(p, weights_only=True))):
        cs.apply(plan, output)
        other = torch.nn.TransformerEncoderLayer(16, 2, 32)
        other.load_state_dict(load(output), strict=True)
        for key, value in model.state_dict().items():
            if not key.startswith("norm2"):
                assert torch.equal(other.state_dict()[key], value)


def test_the_same_inputs_give_the_same_bytes() -> None:
    torch.save({"a": torch.randn(3, 4), "b": torch.randn(5)}, "src.pth")
    declare("dst.yaml", {"a": (3, 4), "b": (5,), "c": (6,)})
    Path("dst.yaml").write_text(Path("dst.yaml").read_text().replace("zeros", "{normal: {std: 0.1}}"))
    for suffix in ("safetensors", "pth"):
        seen = set()
        for name in ("one", "two"):
            cs.apply(cs.transplant("src.pth", "dst.yaml", seed=3), f"{name}.{suffix}")
            seen.add(Path(f"{name}.{suffix}").read_bytes())
            os.utime("src.pth")
        assert len(seen) == 1
    assert json.loads(cs.open_checkpoint("one.pth").recipe or "")["sources"][0]["path"] == "src.pth"


# Operations.

A = torch.arange(20.0).reshape(5, 4)


def test_slice_takes_the_leading_part() -> None:
    torch.save({"a": A}, "src.pth")
    found = transplanted("src.pth", declare("dst.yaml", {"a": (3, 2)}), on_mismatch="slice")
    assert torch.equal(found["a"], A[:3, :2])


def test_pad_and_overlap_lay_the_source_over_initial_values() -> None:
    torch.save({"a": A}, "src.pth")
    declare("dst.yaml", {"a": (7, 6)})
    text = Path("dst.yaml").read_text().replace("init: zeros", "init: 9")
    Path("dst.yaml").write_text(text)
    found = transplanted("src.pth", "dst.yaml", on_mismatch="pad")["a"]
    assert torch.equal(found[:5, :4], A)
    assert (found[5:] == 9).all()
    assert (found[:, 4:] == 9).all()
    Path("dst.yaml").write_text(text.replace("[7, 6]", "[3, 6]"))
    found = transplanted("src.pth", "dst.yaml", on_mismatch="overlap")["a"]
    assert torch.equal(found[:, :4], A[:3])
    assert (found[:, 4:] == 9).all()


def test_interpolate_and_cast_together() -> None:
    torch.save({"a": A.half()}, "src.pth")
    found = transplanted("src.pth", declare("dst.yaml", {"a": ("float64", (9, 4))}), on_mismatch="interpolate")["a"]
    wanted = torch.nn.functional.interpolate(A.t()[None], size=9, mode="linear", align_corners=False)[0].t().double()
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("policy", ["slice", "pad", "overlap", "interpolate"])
def test_a_resized_tensor_can_be_cast_and_come_from_strides(policy: str) -> None:
    big = torch.randn(8, 6)
    source = big.t()[:, ::2] if policy == "slice" else big.t()[:4, ::2]  # (6, 4), (4, 4), strided
    torch.save({"a": source}, "src.pth")
    shape = {"slice": (5, 3), "pad": (7, 5), "overlap": (3, 6), "interpolate": (7, 4)}[policy]
    found = transplanted("src.pth", declare("dst.yaml", {"a": ("bfloat16", shape)}), on_mismatch=policy)["a"]
    shared = tuple(slice(0, min(s, d)) for s, d in zip(source.shape, shape, strict=True))
    if policy != "interpolate":
        assert torch.equal(found[shared], source[shared].bfloat16())
    assert found.dtype == torch.bfloat16


@pytest.mark.long
def test_large_tensors_go_through_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.engine import copy_bytes
    from ckptsurgeon.engine.compute import reading

    monkeypatch.setattr(one_block, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(copy_bytes, "CHUNK", 4096)
    monkeypatch.setattr(copy_bytes, "BLOCK", 512)
    monkeypatch.setattr(reading, "SMALL_BYTES", 2000)
    torch.manual_seed(0)
    tensors = {
        "copy": torch.randn(97, 103), "cast": torch.randn(97, 103), "slice": torch.randn(97, 103),
        "t": torch.randn(103, 97).t(), "resize": torch.randn(50, 103), "step": torch.randn(97, 206)[:, ::2],
        "tcast": torch.randn(103, 97).t(),
    }  # fmt: skip
    torch.save(tensors, "src.pth")
    shapes = {key: ((F16 if "cast" in key else "float32"), tuple(value.shape)) for key, value in tensors.items()}
    shapes["slice"], shapes["resize"] = ("float32", (50, 60)), ("float32", (80, 103))
    found = transplanted("src.pth", declare("dst.yaml", shapes), on_mismatch=["slice=slice", "resize=interpolate"])
    for key in ("copy", "t", "step"):
        assert torch.equal(found[key], tensors[key])
    for key in ("cast", "tcast"):
        assert torch.equal(found[key], tensors[key].half())
    assert torch.equal(found["slice"], tensors["slice"][:50, :60])
    wanted = torch.nn.functional.interpolate(tensors["resize"].t()[None], size=80, mode="linear", align_corners=False)
    assert torch.allclose(found["resize"], wanted[0].t(), atol=1e-5)


F16 = "float16"


def test_values_that_become_infinite_are_said() -> None:
    torch.save({"a": torch.tensor([1.0, 1e30, 2.0])}, "src.pth")
    receipt = cs.apply(cs.transplant("src.pth", declare("dst.yaml", {"a": (F16, (3,))})), "out.safetensors")
    assert receipt.notes == ("1 value of a became infinite or NaN",)


def test_an_integer_that_does_not_fit_is_refused_and_nothing_is_left() -> None:
    torch.save({"a": torch.tensor([1, 300])}, "src.pth")
    with pytest.raises(cs.PlanError, match="a: the value 300 does not fit int8"):
        cs.apply(cs.transplant("src.pth", declare("dst.yaml", {"a": ("int8", (2,))})), "out.safetensors")
    assert sorted(os.listdir()) == ["dst.yaml", "src.pth"]


# Ties.

TIED = "  tied: [[embed, out]]\n"


def test_every_alias_is_written_and_a_zip_shares_their_storage() -> None:
    torch.save({"embed": A}, "src.pth")
    declare("dst.yaml", {"embed": (5, 4), "out": (5, 4)}, TIED)
    found = transplanted("src.pth", "dst.yaml")
    assert torch.equal(found["embed"], A)
    assert torch.equal(found["out"], A)
    transplanted("src.pth", "dst.yaml", "out.pth")
    loaded = torch.load("out.pth", weights_only=True)
    assert loaded["embed"].data_ptr() == loaded["out"].data_ptr()


def test_drawn_ties_are_drawn_once() -> None:
    torch.save({"x": torch.ones(1)}, "src.pth")
    declare("dst.yaml", {"x": (1,), "embed": (5, 4), "out": (5, 4)}, TIED)
    Path("dst.yaml").write_text(Path("dst.yaml").read_text().replace("zeros", "{uniform: {a: 0, b: 1}}"))
    for output in ("out.safetensors", "out.pth"):
        found = transplanted("src.pth", "dst.yaml", output)
        assert torch.equal(found["embed"], found["out"])
        assert found["embed"].std() > 0


def test_aliases_that_differ_are_found_before_anything_is_written() -> None:
    save_file({"embed": A, "out": A + 1}, "src.safetensors")  # no checksums in the header: only the bytes can tell
    declare("dst.yaml", {"embed": (5, 4), "out": (5, 4)}, TIED)
    plan = cs.transplant("src.safetensors", "dst.yaml")
    with pytest.raises(cs.PlanError, match="embed and out of src.safetensors are not equal"):
        cs.apply(plan, "out.safetensors")
    assert not Path("out.safetensors").exists()


# Checksums.


def flip(path: str, needle: bytes, at: int = 0) -> None:
    data = bytearray(Path(path).read_bytes())
    where = data.index(needle) + at
    data[where] ^= 1
    Path(path).write_bytes(bytes(data))


@pytest.mark.parametrize("destination", ["same", "cast", "slice", "view"])
def test_a_record_with_a_bad_checksum_is_never_used(destination: str) -> None:
    base = torch.arange(1000.0)
    torch.save({"a": base[:500] if destination == "view" else base}, "src.pth")
    shapes = {"same": (1000,), "cast": (F16, (1000,)), "slice": (10,), "view": (500,)}[destination]
    declare("dst.yaml", {"a": shapes})
    flip("src.pth", torch.tensor([998.0, 999.0]).numpy().tobytes())  # torch.load says nothing
    torch.load("src.pth", weights_only=True)
    plan = cs.transplant("src.pth", "dst.yaml", on_mismatch="slice")
    with pytest.raises(cs.FormatError, match="does not match its checksum"):
        cs.apply(plan, "out.safetensors")
    assert sorted(os.listdir()) == ["dst.yaml", "src.pth"]


# The plan is held against its inputs.


def made_plan() -> cs.Plan:
    torch.save({"a": A, "b": torch.ones(3)}, "src.pth")
    declare("dst.yaml", {"a": (5, 4), "c": (2,)})
    plan = cs.transplant("src.pth", "dst.yaml")
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    return plan


def test_a_plan_on_disk_gives_the_same_bytes() -> None:
    cs.apply(made_plan(), "direct.safetensors")
    cs.apply("plan.json", "later.safetensors")
    assert Path("direct.safetensors").read_bytes() == Path("later.safetensors").read_bytes()


@pytest.mark.parametrize("change", ["touch", "contents", "config"])
def test_a_plan_whose_input_changed_is_refused(change: str) -> None:
    made_plan()
    if change == "touch":
        os.utime("src.pth", ns=(1, 1))
    elif change == "contents":
        torch.save({"a": A + 1, "b": torch.ones(3)}, "src.pth")
    else:
        Path("dst.yaml").write_text(Path("dst.yaml").read_text() + "\n")
    with pytest.raises(cs.PlanError, match="has changed since the plan") as caught:
        cs.apply("plan.json", "out.safetensors")
    assert caught.value.exit_code == 4
    assert not Path("out.safetensors").exists()


def test_a_plan_whose_source_is_gone_says_so() -> None:
    made_plan()
    os.remove("src.pth")
    with pytest.raises(cs.SourceError, match="src.pth does not exist"):
        cs.apply("plan.json", "out.safetensors")


def test_a_plan_in_another_folder_says_what_its_paths_are_relative_to(monkeypatch: pytest.MonkeyPatch) -> None:
    made_plan()
    Path("else").mkdir()
    monkeypatch.chdir("else")
    with pytest.raises(cs.SourceError, match=r"Paths in a plan are relative to the working directory\."):
        cs.apply("../plan.json", "out.safetensors")
    os.link("../src.pth", "src.pth")
    with pytest.raises(cs.CheckpointError, match=r"Paths in a plan are relative to the working directory\."):
        cs.apply("../plan.json", "out.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [500, 400]}, {"op": "slice", "shape": [6, 4]}, {"op": "pad", "shape": [2, 2]}, {"op": "keep", "shape": [4, 5]},
        {"op": "interpolate", "shape": [0, 4]}, {"op": "copy", "from": None}, {"dtype": "magic"},
    ],
)  # fmt: skip
def test_a_plan_edited_into_the_impossible_is_refused(change: dict[str, Any]) -> None:
    made_plan()
    data = json.loads(Path("plan.json").read_text())
    data["steps"][0].update(change)
    Path("plan.json").write_text(json.dumps(data))
    with pytest.raises(cs.CheckpointError) as caught:
        cs.apply("plan.json", "out.safetensors")
    assert caught.value.exit_code in (2, 4, 5)
    assert not Path("out.safetensors").exists()


# Formats.


def test_a_dtype_the_format_lacks_names_one_that_has_it() -> None:
    torch.save({"a": torch.ones(2, dtype=torch.complex128)}, "src.pth")
    with pytest.raises(
        cs.OutputError, match=r"safetensors does not support complex128, the dtype of a. Use to=.pth."
    ) as caught:
        cs.apply(cs.transplant("src.pth", "src.pth"), "out.safetensors")
    assert caught.value.exit_code == 5
    cs.apply(cs.transplant("src.pth", "src.pth"), "out.pth")


@pytest.mark.parametrize(
    ("output", "options", "why"),
    [
        ("out.xyz", {}, "does not belong to a known format. Use .msgpack"),
        ("out.megatron", {}, "megatron is a layout, so give layout=.megatron.. Use "),
        ("out.nemo", {}, "A .nemo is a tar archive: write model_weights.ckpt"),
        ("sub/out.tp", {}, "The format tp is a folder: to=.tp. .* sub/out/"),
        ("sub/out.flax", {}, "The usual suffix of the format flax is .msgpack: .* sub/out.msgpack"),
        ("out", {"to": "orbax"}, "to=.orbax. is unknown. ckpt reads folders of Orbax, but does not write them"),
        ("out.pth", {"to": "magic"}, "to=.magic. is unknown"),
        ("out", {"max_shard_size": "many"}, "is not a valid size"),
        ("out", {"max_shard_size": "0GB"}, "is not a valid size"),
        ("out", {"max_shard_size": "9" * 400}, "is not a valid size"),
        ("out", {"max_shard_size": "5"}, "max_shard_size=.5. has no unit, so it means 5 bytes. Write 5GB or 5MB"),
        ("out", {"max_shard_size": "999999"}, "it means 999999 bytes"),
    ],
)
def test_an_unknown_format_or_size_is_usage(output: str, options: dict[str, str], why: str) -> None:
    torch.save({"a": A}, "src.pth")
    with pytest.raises(cs.ConfigError, match=why):
        cs.apply(cs.transplant("src.pth", "src.pth"), output, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", ["5B", "90B", "0.09 kB"])
@pytest.mark.parametrize("to", ["safetensors", "pth", "dcp"])
def test_a_size_that_gives_every_tensor_a_shard_is_refused(size: str, to: str) -> None:
    torch.save({f"w{i}": torch.ones(20) * i for i in range(56)}, "src.pth")
    plan = cs.convert("src.pth")
    with pytest.raises(cs.ConfigError, match=f'max_shard_size="{size}" makes 56 shards, one for each tensor') as error:
        cs.apply(plan, "out", to=to, max_shard_size=size)
    assert error.value.hint == "Write a size that several tensors fit in, as in 1KB."
    assert not Path("out").exists()


@pytest.mark.parametrize(("size", "fits"), [(300, "3KB"), (200_000, "2MB")])
def test_the_size_that_the_hint_names_is_taken(size: int, fits: str) -> None:
    torch.save({"a": torch.ones(size), "b": torch.ones(size), "c": torch.ones(8)}, "src.pth")
    with pytest.raises(cs.ConfigError) as error:
        cs.apply(cs.convert("src.pth"), "out", max_shard_size="16B")
    assert error.value.hint == f"Write a size that several tensors fit in, as in {fits}."
    cs.apply(cs.convert("src.pth"), "out", max_shard_size=fits)


def test_a_small_size_that_tensors_share_and_a_large_one_that_none_share_are_taken() -> None:
    torch.save({f"w{i}": torch.ones(20) * i for i in range(4)}, "small.pth")
    torch.save({f"w{i}": torch.ones(260_000) * i for i in range(2)}, "large.pth")
    torch.save({"w": torch.ones(20)}, "one.pth")
    for name, size, shards in (("small", "160B", 2), ("large", "1000000", 2), ("one", "5B", 1)):
        cs.apply(cs.convert(f"{name}.pth"), name, max_shard_size=size)
        assert len(list(Path(name).glob("*.safetensors"))) == shards


def test_metadata_is_carried() -> None:
    save_file({"a": A}, "src.safetensors", {"format": "pt", "licence": "MIT"})
    declare("dst.yaml", {"a": (5, 4)})
    cs.apply(cs.transplant("src.safetensors", "dst.yaml"), "out.safetensors")
    assert dict(cs.open_checkpoint("out.safetensors").metadata) == {"format": "pt", "licence": "MIT"}
    cs.apply(cs.transplant("src.safetensors", "dst.yaml"), "out.pth")
    assert json.loads(cs.open_checkpoint("out.pth").recipe or "")["metadata"] == {"licence": "MIT"}


def test_keys_of_any_kind_are_written_and_read_back() -> None:
    tensors = {"ü.ñ": A, "a b": A + 1, 'q"uote\\': A + 2, "\x1b[31m": A + 3, "": A + 4, "日本": A + 5}
    torch.save(tensors, "src.pth")
    for output in ("out.safetensors", "out.pth"):
        cs.apply(cs.transplant("src.pth", "src.pth"), output)
        for key, value in tensors.items():
            assert torch.equal(cs.open_checkpoint(output).tensor(key), value)


def test_progress_is_told_to_the_end() -> None:
    torch.save({"a": torch.zeros(3_000_000), "b": torch.zeros(10)}, "src.pth")
    seen: list[tuple[int, int]] = []
    cs.apply(
        cs.transplant("src.pth", "src.pth"), "out.safetensors", progress=lambda done, total: seen.append((done, total))
    )
    assert seen
    assert max(done for done, _ in seen) == 12_000_040


PEAK = """
import sys
import ckptsurgeon as cs
cs.apply(cs.transplant("src.pth", "dst.yaml", on_mismatch="slice"), "out.safetensors")
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")), "torch" in sys.modules)
"""


def test_memory_does_not_grow_with_the_model() -> None:
    peaks = []
    for size in (2, 60):  # megabytes in each of four tensors: copied, cast, sliced, strided
        rows = size * 250
        torch.save({k: torch.zeros(1000, rows).t() if k == "t" else torch.zeros(rows, 1000) for k in "acst"}, "src.pth")
        shapes = {"a": (rows, 1000), "c": (F16, (rows, 1000)), "s": (rows, 900), "t": (rows, 1000)}
        declare("dst.yaml", shapes)
        done = run_apart(PEAK)
        assert not done.returncode, done.stderr
        peak, torch_loaded = done.stdout.split()
        assert torch_loaded == "False"
        peaks.append(int(peak) / 1024)
        os.remove("out.safetensors")
    assert peaks[1] < peaks[0] + 30  # 240 MB of tensors
    assert peaks[1] < 110


def test_applying_a_plan_says_what_code_it_ran() -> None:
    Path("plan_net.py").write_text("from torch import nn\n\ndef net():\n    return nn.Linear(2, 2)\n")
    Path("dst.yaml").write_text("model: {_target_: plan_net.net}")
    torch.save({"weight": torch.ones(2, 2)}, "src.pth")
    plan = cs.transplant("src.pth", "dst.yaml")
    assert "ran plan_net.net from plan_net.py" in plan.notes
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    assert cs.apply("plan.json", "out.safetensors").notes == ("ran plan_net.net from plan_net.py",)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.complex32], ids=str)
def test_conjugate_and_negative_views_of_types_numpy_lacks(dtype: torch.dtype) -> None:
    values = torch.tensor([1.0, -2.0, 0.0, 0.5]) * (1 + 1j if dtype.is_complex else 1)
    tensor = values.to(dtype)
    views = {"neg": torch._neg_view(tensor), "plain": tensor}
    if dtype.is_complex:
        views["conj"] = tensor.conj()
    torch.save(views, "src.pth")
    wide = torch.complex64 if dtype.is_complex else torch.float32
    found = transplanted("src.pth", "src.pth", "out.pth")
    assert torch.equal(found["neg"].to(wide), -values)
    assert torch.equal(found["plain"].to(wide), values)
    if dtype.is_complex:
        assert torch.equal(found["conj"].to(wide), values.conj())


def test_interpolating_down_reads_little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = list[int](), one_block.read_part

    def counted(file: Any, info: Any, box: Any) -> Any:
        part = real(file, info, box)
        read.append(part.nbytes)
        return part

    monkeypatch.setattr(one_block, "read_part", counted)
    torch.save({"a": torch.randn(3_000_000)}, "src.pth")
    declare("dst.yaml", {"a": (10,)})
    transplanted("src.pth", "dst.yaml", on_mismatch="interpolate")
    assert max(read) <= one_block.BLOCK_BYTES


def test_a_read_error_inside_the_kernel_s_copy_is_the_source_s(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.randn(200_000)}, "src.pth")

    def failing(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "copy_file_range", failing)
    cs.apply(cs.transplant("src.pth", "src.pth"), "by_hand.pth")
    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(cs.SourceError, match="src.pth"):
        cs.apply(cs.transplant("src.pth", "src.pth"), "out.pth")
    assert not Path("out.pth").exists()
