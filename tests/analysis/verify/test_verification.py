"""Verify: a flipped bit anywhere is found and named; gone sources are said; values are held against their origin."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.planning.plan.files import PlanTarget
from ckptsurgeon.planning.recipe import Recipe, RecipeEntry, parse_recipe
from ckptsurgeon.planning.recipe_text import RecipeText

from ...helpers.declare import declare
from ...helpers.depth import some_of


@pytest.fixture(autouse=True)
def inputs() -> None:
    torch.manual_seed(0)
    torch.save(
        {
            "copy": torch.randn(40),
            "cast": torch.randn(30),
            "cut": torch.randn(9, 4),
            "grow": torch.randn(3, 4),
            "stretch": torch.randn(6, 2),
            "one": torch.ones(1),
        },
        "src.pth",
    )
    shapes = {
        "copy": (40,), "cast": ("float16", (30,)), "cut": (5, 3), "grow": (5, 4), "stretch": (9, 2), "one": (),
        "new": (8, 8), "embed": (4, 4), "out": (4, 4),
    }  # fmt: skip
    declare("dst.yaml", shapes, "  tied: [[embed, out]]\n")
    Path("dst.yaml").write_text(Path("dst.yaml").read_text().replace("init: zeros", "init: {uniform: {a: -1, b: 1}}"))


POLICIES = {"cut": "slice", "grow": "pad", "stretch": "interpolate"}
OUTPUTS = {
    "safetensors": ("out.safetensors", {}),
    "pth": ("out.pth", {}),
    "folder": ("folder", {}),
    "shards": ("shards", {"max_shard_size": "300B"}),
    "shards of pth": ("shards_pth", {"max_shard_size": "300B", "to": "pth"}),
}


def plan() -> cs.Plan:
    return cs.transplant("src.pth", "dst.yaml", on_mismatch=POLICIES)


def made(name: str) -> str:
    output, options = OUTPUTS[name]
    cs.apply(plan(), output, **options)  # type: ignore[arg-type]
    return output


def files_of(output: str) -> list[Path]:
    return [Path(output)] if os.path.isfile(output) else sorted(Path(output).iterdir())


def flipped(path: Path, position: int, bit: int = 0) -> None:
    """Flip a bit where it lies: a file that is cut to nothing and written anew waits for the disk."""
    with open(path, "r+b", buffering=0) as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


@pytest.mark.costly
@pytest.mark.parametrize("name", OUTPUTS)
def test_what_was_written_is_sound(name: str) -> None:
    found = cs.verify(made(name))
    assert found.ok
    assert (found.checked, found.compared, found.drawn) == (9, 6, 3)
    assert not found.not_compared
    assert (found.nan, found.inf) == (0, 0)


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("name", OUTPUTS)
def test_a_flipped_bit_anywhere_is_found(name: str) -> None:
    """Every byte of a safetensors header, of the values every seventh; 250 of a .pth; every 16th of a folder's files.

    Nothing an output is made of goes unseen. Of two shards that follow each other other bytes are tried.
    """
    output = made(name)
    generator = random.Random(0)
    for number, path in enumerate(files := files_of(output)):
        whole = path.read_bytes()
        every = range(len(whole)) if len(files) == 1 else range(number % 16, len(whole), 16)
        positions = every if len(every) < 4000 else sorted(generator.sample(every, 250))
        if name == "safetensors":
            header = 8 + int.from_bytes(whole[:8], "little")
            positions = [*range(header), *range(header, len(whole), 7)]
        for position in some_of(positions):  # one bit each
            bit = generator.randrange(8)
            flipped(path, position, bit)
            found = cs.verify(output)
            assert not found.ok, (path, position, whole[max(0, position - 20) : position + 20])
            assert all(failure.why for failure in found.failed)
            flipped(path, position, bit)
        assert path.read_bytes() == whole
    assert cs.verify(output).ok


@pytest.mark.parametrize("key", ["copy", "cast", "cut", "grow", "stretch", "new", "embed"])
def test_the_tensor_with_the_flipped_bit_is_named(key: str) -> None:
    output = made("safetensors")
    info = cs.open_checkpoint(output)[key]
    assert info.storage is not None
    flipped(Path(output), info.storage.offset + info.offset + 5)
    found = cs.verify(output)
    assert key in {failure.key for failure in found.failed}
    assert "CRC-32" in next(f.why for f in found.failed if f.key == key)
    with pytest.raises(cs.VerifyError, match=f"{key}: has CRC-32"):
        found.raise_if_failed()


def reseal(output: str, key: str, values: torch.Tensor) -> None:
    """Change a tensor and every checksum that would tell: only the sources can."""
    import struct
    import zlib

    from ckptsurgeon.formats.base.header import UNSEALED, seal

    data = bytearray(Path(output).read_bytes())
    info = cs.open_checkpoint(output)[key]
    assert info.storage is not None
    raw = values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    assert len(raw) == info.nbytes
    begin = info.storage.offset + info.offset
    data[begin : begin + info.nbytes] = raw
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    recipe = json.loads(header["__metadata__"]["ckptsurgeon"])
    recipe["tensors"][key]["crc32"] = f"{zlib.crc32(raw):08x}"
    recipe["seal"] = UNSEALED
    text = json.dumps(recipe, separators=(",", ":"))
    header["__metadata__"]["ckptsurgeon"] = text
    blank = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    import hashlib

    digest = hashlib.sha256(bytes(data[:8]) + blank.ljust(length)).hexdigest()
    header["__metadata__"]["ckptsurgeon"] = "".join(seal([text], digest))
    data[8 : 8 + length] = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
    Path(output).write_bytes(bytes(data))


@pytest.mark.parametrize("key", ["copy", "cast", "cut", "grow", "stretch"])
def test_values_that_differ_from_their_source_are_found_though_every_checksum_holds(key: str) -> None:
    output = made("safetensors")
    values = cs.open_checkpoint(output).tensor(key)
    first = values.reshape(-1)
    first[2] = first[2] + 1
    reseal(output, key, first.reshape(values.shape))
    found = cs.verify(output)
    assert [failure.key for failure in found.failed] == [key]
    assert f"differs from {key} of" in found.failed[0].why
    os.rename("src.pth", "gone.pth")
    assert cs.verify(output).ok  # checksums hold, and nothing is left to compare with


def test_tied_tensors_that_differ_are_found() -> None:
    output = made("safetensors")
    values = cs.open_checkpoint(output).tensor("out")
    reseal(output, "out", values + 1)
    assert [(f.key, "tied to embed" in f.why) for f in cs.verify(output).failed] == [("out", True)]


@pytest.mark.costly
@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
@pytest.mark.parametrize("form", ["safetensors", "pth"])
def test_a_link_to_an_output_finds_the_sources(form: str) -> None:
    output = made(form)
    os.makedirs("elsewhere")
    os.symlink(os.path.abspath(output), "elsewhere/link")
    found = cs.verify("elsewhere/link")
    assert found.ok
    assert not found.not_compared
    shutil.move("src.pth", "elsewhere/src.pth")  # as if the output had been written through the link
    assert not cs.verify("elsewhere/link").not_compared
    assert cs.verify(output).not_compared


def test_sources_that_moved_can_be_named_and_gone_ones_are_said() -> None:
    output = made("safetensors")
    os.makedirs("archive")
    shutil.move("src.pth", "archive/old.pth")
    gone = cs.verify(output)
    assert gone.ok
    assert len(gone.not_compared or {}) == 6
    assert set((gone.not_compared or {}).values()) == {"src.pth is no longer at its path (src.pth)"}
    found = cs.verify(output, sources={"src.pth": "archive/old.pth"})
    assert found.ok
    assert found.compared == 6
    with pytest.raises(
        cs.ConfigError, match=r"sources: the output has no source with the name other. Use one of src.pth"
    ):
        cs.verify(output, sources={"other": "archive/old.pth"})
    with pytest.raises(cs.SourceError):
        cs.verify(output, sources={"src.pth": "nothing.pth"})


def test_a_source_that_is_another_file_now_is_not_compared() -> None:
    output = made("safetensors")
    torch.save({"copy": torch.zeros(3)}, "src.pth")
    found = cs.verify(output)
    assert found.ok
    assert len(found.not_compared or {}) == 6
    assert "a different file now" in next(iter((found.not_compared or {}).values()))


def test_an_output_may_move_with_its_sources() -> None:
    os.makedirs("runs/a")
    os.makedirs("out")
    shutil.move("src.pth", "runs/a/src.pth")
    cs.apply(cs.transplant("runs/a/src.pth", "dst.yaml", on_mismatch=POLICIES), "out/o.safetensors")
    os.makedirs("elsewhere")
    for name in ("runs", "out"):
        shutil.move(name, f"elsewhere/{name}")
    assert cs.verify("elsewhere/out/o.safetensors").compared == 6


def test_an_output_is_held_against_its_plan() -> None:
    output = made("safetensors")
    assert cs.verify(output, plan=plan()).ok
    Path("plan.json").write_text(json.dumps(plan().to_json()))
    assert cs.verify(output, plan="plan.json").ok
    other = cs.transplant("src.pth", "dst.yaml", on_mismatch=POLICIES, exclude=["copy"])
    assert [f.key for f in cs.verify(output, plan=other).failed] == ["copy"]
    seeded = cs.transplant("src.pth", "dst.yaml", on_mismatch=POLICIES, seed=3)
    assert "seed" in cs.verify(output, plan=seeded).failed[0].why


def test_a_file_without_a_recipe_can_be_held_against_a_plan() -> None:
    output = made("safetensors")
    found = cs.open_checkpoint(output)
    save_file({key: found.tensor(key).clone() for key in found}, "plain.safetensors")
    with pytest.raises(cs.ConfigError, match="has no recipe") as caught:
        cs.verify("plain.safetensors")
    assert caught.value.exit_code == 2
    assert cs.verify("plain.safetensors", plan=plan()).ok
    changed = {key: found.tensor(key).clone() for key in found}
    changed["copy"][3] += 1
    save_file({k: v for k, v in changed.items() if k != "new"}, "plain.safetensors")
    failed = {failure.key for failure in cs.verify("plain.safetensors", plan=plan()).failed}
    assert failed == {"copy", "new"}


def test_nan_and_inf_are_counted() -> None:
    values = torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])
    save_file(
        {"a": values, "b": values.bfloat16(), "c": values.half(), "d": values.to(torch.float8_e5m2)}, "nan.safetensors"
    )
    cs.apply(cs.transplant("nan.safetensors", "nan.safetensors"), "o.safetensors")
    found = cs.verify("o.safetensors")
    assert (found.nan, found.inf) == (4, 8)


def test_the_output_must_be_there() -> None:
    with pytest.raises(cs.SourceError, match="does not exist"):
        cs.verify("nothing.safetensors")


def test_a_verification_as_json() -> None:
    data: dict[str, Any] = cs.verify(made("safetensors")).to_json()
    assert data["kind"] == "ckpt.verify"
    assert (data["checked"], data["failed"], data["not_compared"], data["ok"]) == (9, [], [], True)


def test_a_difference_far_into_a_tensor_is_found() -> None:
    """Tensors are compared a mebibyte at a time."""
    torch.save({"w": torch.zeros(700_000)}, "long.pth")
    Path("long.yaml").write_text("model: {tensors: {w: {shape: [700000]}}}")
    plan = cs.transplant("long.pth", "long.yaml")
    cs.apply(plan, "long.safetensors")
    other = load_file("long.safetensors")["w"]
    other[-1] = 1
    save_file({"w": other}, "long2.safetensors")
    found = cs.verify("long2.safetensors", plan=plan)
    assert [failure.why for failure in found.failed] == ["differs from w of long.pth at byte 2799998"]


@pytest.mark.parametrize("layout", ["transposed", "as it is"])
def test_strides_of_an_output_count(layout: str) -> None:
    source = torch.arange(12.0).view(3, 4)
    torch.save({"w": source}, "s.pth")
    Path("s.yaml").write_text("model: {tensors: {w: {shape: [3, 4]}}}")
    plan = cs.transplant("s.pth", "s.yaml")
    strided = source.t().contiguous().t()  # the same values, laid out by columns
    wrong = source.reshape(4, 3).t()  # the same bytes, other values
    torch.save({"w": wrong if layout == "transposed" else strided}, "o.pth")
    assert cs.verify("o.pth", plan=plan).ok == (layout == "as it is")


def test_a_recipe_that_was_changed_into_nonsense_is_a_failure() -> None:
    output = made("pth")
    for old, new in ((b'"op":"slice"', b'"op":"slicf"'), (b'"from":[0],"policy":"pad"', b'"from":[9],"policy":"pad"')):
        data = Path(output).read_bytes()
        assert old in data
        Path(output).write_bytes(data.replace(old, new))
        found = cs.verify(output)
        assert not found.ok
        Path(output).write_bytes(data)


def test_a_recipe_says_by_which_rule_and_why() -> None:
    torch.save({"a.w": torch.ones(2), "b.w": torch.ones(2), "h.w": torch.ones(2)}, "s.pth")
    zeros = "init: zeros"
    rows = f"c.w: {{shape: [2]}}, b.w: {{shape: [3], {zeros}}}, h.w: {{shape: [3], {zeros}}}, n: {{shape: [], {zeros}}}"
    Path("d.yaml").write_text(f"model: {{tensors: {{{rows}}}}}")
    plan = cs.transplant("s.pth", "d.yaml", map=["a=c"], on_mismatch={"b": "pad", "h": "init"})
    cs.apply(plan, "o.safetensors")
    text = cs.open_checkpoint("o.safetensors").recipe
    assert text is not None
    said = {key: (made.rule, made.reason) for key, made in parse_recipe(text).tensors.items()}
    assert said == {step.key: (step.rule, step.reason) for step in plan.steps}
    assert [said["c.w"], said["n"], said["h.w"][1]] == [("--map a=c", ""), ("", "missing"), "mismatch"]
    assert json.loads(text)["rules"] == list(dict.fromkeys(step.rule for step in plan.steps if step.rule))


@pytest.mark.parametrize("number", [2, -1, True, "0", None])
def test_a_rule_that_the_recipe_does_not_have_is_damage(number: object) -> None:
    made = {"w": RecipeEntry("init", "initialised", rule="r")}
    text = RecipeText(Recipe("0", "rename", 0, {}, (), PlanTarget("", "", ""), made)).checked({})
    data = json.loads("".join(text))
    data["tensors"]["w"]["rule"] = number
    with pytest.raises(cs.VerifyError, match="is not the index of a (rule|merge)"):
        parse_recipe(json.dumps(data))


def test_keys_that_were_not_planned_are_found() -> None:
    torch.save({"w": torch.ones(2)}, "s.pth")
    Path("s.yaml").write_text("model: {tensors: {w: {shape: [2]}, x: {shape: [1], init: ones}}}")
    cs.apply(cs.transplant("s.pth", "s.yaml"), "o.safetensors")
    Path("less.yaml").write_text("model: {tensors: {w: {shape: [2]}}}")
    found = cs.verify("o.safetensors", plan=cs.transplant("s.pth", "less.yaml"))
    assert ("x", "is not in the plan") in [(failure.key, failure.why) for failure in found.failed]


def test_a_tensor_that_only_the_plan_has_is_said_to_be_missing_where_it_is_missing() -> None:
    """It may be in the output: then the recipe lacks it."""
    torch.save({"w": torch.ones(2)}, "s.pth")
    Path("s.yaml").write_text("model: {tensors: {w: {shape: [2]}, x: {shape: [1], init: ones}}}")
    Path("less.yaml").write_text("model: {tensors: {w: {shape: [2]}}}")
    whole, less = cs.transplant("s.pth", "s.yaml"), cs.transplant("s.pth", "less.yaml")
    cs.apply(less, "o.safetensors")
    with safe_open("o.safetensors", "pt") as file:
        recipe = file.metadata()
    save_file({"w": torch.ones(2), "x": torch.ones(1)}, "more.safetensors", recipe)
    why = {failure.why for failure in cs.verify("more.safetensors", plan=whole).failed if failure.key == "x"}
    assert why == {"is in the output, but not in the recipe", "is in the plan, but not in the recipe"}
    why = {failure.why for failure in cs.verify("more.safetensors", plan=cs.transplant("s.pth", "less.yaml")).failed}
    assert "is in the output, but not in the recipe" in why
    save_file({"w": torch.ones(2), "x": torch.ones(1)}, "plain.safetensors")
    (fault,) = cs.verify("plain.safetensors", plan=cs.transplant("s.pth", "less.yaml")).failed
    assert fault.why == "is in the output, but not in the plan"


@pytest.mark.costly
@pytest.mark.parametrize("policy", ["pad", "overlap"])
def test_what_lies_over_a_checkpoint_is_compared_whole(policy: str) -> None:
    torch.manual_seed(1)
    small, big = torch.randn(3, 2), torch.randn(5, 4, dtype=torch.float64)
    torch.save({"a": small}, "small.pth")
    torch.save({"a": big, "b": torch.ones(2)}, "big.pth")
    plan = cs.transplant("small.pth", "big.pth", on_mismatch=policy)
    cs.apply(plan, "o.safetensors")
    wanted = big.clone()
    wanted[:3, :2] = small
    assert torch.equal(load_file("o.safetensors")["a"], wanted)
    assert cs.verify("o.safetensors").compared == 2
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    cs.apply("plan.json", "p.safetensors")
    assert Path("p.safetensors").read_bytes() == Path("o.safetensors").read_bytes()
    wanted[4, 3] += 1
    save_file({"a": wanted, "b": torch.ones(2)}, "q.safetensors")
    assert [failure.key for failure in cs.verify("q.safetensors", plan=plan).failed] == ["a"]
    os.remove("big.pth")
    assert set(cs.verify("o.safetensors").not_compared or ()) == {"a", "b"}


def _planned(**options: Any) -> cs.Plan:
    return cs.rename(options.pop("source", "a.pth"), operations=[{"scale": "w", "by": options.pop("by", 2)}], **options)


def test_an_output_of_another_plan_is_not_what_was_planned() -> None:
    """Other weights, operations, sources and metadata, each of which leaves the keys as they are."""
    for name, value in (("a", 1.0), ("b", 2.0)):
        torch.save({"w": torch.full((3,), value)}, f"{name}.pth")
    cs.apply(_planned(), "out.safetensors")
    assert cs.verify("out.safetensors", plan=_planned()).ok
    for plan, why in (
        (_planned(by=3), "by different operations on a.pth"),
        (_planned(source="b.pth"), "made from a different b.pth"),
    ):
        failed = cs.verify("out.safetensors", plan=plan).failed
        assert any(why in failure.why for failure in failed), failed
    cs.apply(cs.average(["a.pth", "b.pth"], ema=0.5), "mean.safetensors")
    assert cs.verify("mean.safetensors", plan=cs.average(["a.pth", "b.pth"], ema=0.5)).ok
    assert not cs.verify("mean.safetensors", plan=cs.average(["a.pth", "b.pth"], ema=0.9)).ok
    cs.apply(cs.convert("a.pth", metadata={"by": "us"}), "c.safetensors")
    assert not cs.verify("c.safetensors", plan=cs.convert("a.pth", metadata={"by": "them"})).ok
