"""Every family: what the libraries themselves made of one network, there and back, and what transformers computes.

`fixtures/record_layouts.py` made the recordings.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.planning.layouts.layout import Family
from ckptsurgeon.planning.layouts.recognise import families, recognised

FAMILIES = {family.name: family for family in families()}
RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts"
Tensors = dict[str, torch.Tensor]


def recordings(family: str) -> list[str]:
    """The layouts of a family that a library made."""
    return sorted(path.stem for path in (RECORDED / family).glob("*.safetensors") if path.stem != "outputs")


def pairs() -> Iterator[tuple[str, str, str]]:
    """Each family with two of its recorded layouts."""
    for family in FAMILIES:
        yield from ((family, here, there) for here, there in permutations(recordings(family), 2))


def laid(family: str, layout: str) -> Path:
    """A recording in a folder of its own, beside the configuration."""
    folder = Path(f"{family}-{layout}")
    folder.mkdir(exist_ok=True)
    shutil.copy(RECORDED / family / f"{layout}.safetensors", folder / "model.safetensors")
    shutil.copy(RECORDED / family / "config.json", folder)
    return folder


def converted(source: Path, layout: str, output: str) -> Tensors:
    """The tensors of a folder in another layout, as they are written and verified."""
    Path(output).mkdir(exist_ok=True)
    cs.apply(cs.convert(source, layout=layout), Path(output) / "model.safetensors", force=True)
    assert cs.verify(Path(output) / "model.safetensors").ok
    shutil.copy(source / "config.json", Path(output) / "config.json")
    return load_file(Path(output) / "model.safetensors")


def same(one: Tensors, other: Tensors) -> bool:
    """Whether two state dicts have the same keys and bits."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def stored_once(family: Family, layout: str, tensors: Tensors) -> Tensors:
    """The tensors that a layout stores, without those that it computes or ties to others."""
    known = [one for one in family.named(layout) if all(mark in tensors for mark in one.marks)]
    left = {ours for one in family.layouts for ours in one.tied if not any(ours in x.doubled for x in known)}
    names = {one.names.get(ours, ours) for one in known for ours in left}
    computed = {text for one in known for text in one.computed}
    return {
        key: value
        for key, value in tensors.items()
        if key not in computed and not any(key.startswith(f"{name}.") for name in names)
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_recorded(family: str) -> None:
    assert recordings(family)
    own, *others = FAMILIES[family].layouts
    assert all(ours == theirs for ours, theirs in own.names.items())
    assert all(layout.names.keys() <= own.names.keys() for layout in others)
    assert all(layout.tested and layout.library and layout.marks for layout in (own, *others))


@pytest.mark.parametrize(("family", "here", "there"), list(pairs()))
def test_what_the_library_makes(family: str, here: str, there: str) -> None:
    wanted = load_file(RECORDED / family / f"{there}.safetensors")
    assert same(converted(laid(family, here), there, "out"), stored_once(FAMILIES[family], there, wanted))


@pytest.mark.parametrize(
    ("family", "layout"), [(one.name, name) for one in families() for name in sorted({x.name for x in one.layouts})]
)
def test_there_and_back_is_the_identity(family: str, layout: str) -> None:
    for here in recordings(family):
        if here != layout:
            folder = laid(family, here)
            there = converted(folder, layout, "there")
            assert [(one.name, x.name) for one, x in recognised(there)] == [(family, layout)]
            back = converted(Path("there"), here, "back")
            assert same(back, stored_once(FAMILIES[family], here, load_file(folder / "model.safetensors")))


def outputs() -> list[tuple[str, str]]:
    """The recordings of networks that their library ran."""
    return [
        (family, layout)
        for family in FAMILIES
        for layout in recordings(family)
        if (RECORDED / family / "outputs.safetensors").exists()
    ]


@pytest.mark.parametrize(("family", "layout"), outputs())
def test_transformers_loads_it_and_computes_the_same(family: str, layout: str) -> None:
    import transformers

    folder = laid(family, layout)
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    plan = cs.transplant(folder / "model.safetensors", RECORDED / family / "config.json")
    cs.apply(plan, "made")
    model, report = getattr(transformers, name).from_pretrained("made", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    values = load_file(RECORDED / family / "outputs.safetensors")
    wanted = values.pop("output")
    with torch.no_grad():
        found: Any = model.eval()(**values)
    torch.testing.assert_close(found[0], wanted, rtol=1e-5, atol=1e-5)
