"""Every family: what the libraries themselves made of one network, there and back, and what transformers computes.

`fixtures/record_layouts.py` made the recordings, one or several networks of each family.
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
from ckptsurgeon.errors import PlanError
from ckptsurgeon.planning.layouts.changes import parsed
from ckptsurgeon.planning.layouts.layout import Family
from ckptsurgeon.planning.layouts.recognise import families, recognised

from ...helpers.depth import FULL, covering

FAMILIES = {family.name: family for family in families()}
RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts"
NETWORKS = {folder.name: FAMILIES[folder.name.partition(".")[0]] for folder in sorted(RECORDED.iterdir())}
REFUSED = {
    *((network, f"speechbrain{kind}") for network in ("wav2vec2", "wav2vec2.hubert") for kind in ("", "-fairseq")),
    *((network, layout) for network in ("llama.qwen2", "llama.qwen3") for layout in ("meta", "torchtune")),
    *(("gpt-neox", f"megatron{kind}") for kind in ("", "-local", "-dist")),
}
"""Networks and layouts that they cannot get: other rotary embeddings, a parallel residual, and heads for CTC."""
Tensors = dict[str, torch.Tensor]


def recordings(network: str) -> list[str]:
    """The layouts of a network that a library made."""
    return sorted(path.stem for path in (RECORDED / network).glob("*.safetensors") if path.stem != "outputs")


def pairs() -> Iterator[tuple[str, str, str]]:
    """Each network with two of its recorded layouts."""
    for network in NETWORKS:
        named = NETWORKS[network].named
        for here, there in permutations(recordings(network), 2):
            if not named(here)[0].only_written and not all(one.only_read for one in named(there)):
                yield network, here, there


def parts(pair: tuple[str, str, str]) -> list[tuple[str, ...]]:
    """What a pair tries: two layouts of a family, and for a network what is read and what is written.

    A conversion goes by way of the family's own layout, so that two networks of a family need not both try each pair.
    """
    network, here, there = pair
    return [(NETWORKS[network].name, here, there), (network, "from", here), (network, "to", there)]


PAIRS = covering([*pairs()], parts)
VERIFIED = covering(PAIRS, lambda pair: [(pair[0], pair[2])])
"""Each network in each layout that it gets."""


def laid(network: str, layout: str) -> Path:
    """A recording in a folder of its own, beside the configuration."""
    folder = Path(f"{network}-{layout}")
    folder.mkdir(exist_ok=True)
    shutil.copy(RECORDED / network / f"{layout}.safetensors", folder / "model.safetensors")
    shutil.copy(RECORDED / network / "config.json", folder)
    return folder


def converted(source: Path, layout: str, output: str, *, is_verified: bool = True) -> Tensors:
    """The tensors of a folder in another layout, as they are written and verified."""
    Path(output).mkdir(exist_ok=True)
    cs.apply(cs.convert(source, layout=layout), Path(output) / "model.safetensors", force=True)
    if is_verified:
        assert cs.verify(Path(output) / "model.safetensors").ok
    shutil.copy(source / "config.json", Path(output) / "config.json")
    return load_file(Path(output) / "model.safetensors")


def same(one: Tensors, other: Tensors) -> bool:
    """Whether two state dicts have the same keys and bits."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def stored_once(family: Family, layout: str, tensors: Tensors, other: str) -> Tensors:
    """The tensors that a layout stores and that the layout ``other`` may store, too.

    They are those that it neither computes nor ties to others, nor has for training alone without a name in ``other``,
    unless it needs them, as zeros.
    """
    family = family.of(tensors) or family
    known = [one for one in family.named(layout) if all(mark in tensors for mark in one.marks)]
    added = {ours for one in known for ours in (*one.doubled, *one.needed)}
    left = {ours for one in family.layouts for ours in one.tied if ours not in added}
    names = {one.names.get(ours, ours) for one in known for ours in left}
    computed = {text for one in known for text in one.computed}
    names |= {text for one in known for text in one.aside}
    there = {ours for one in family.named(other) for ours in one.names}
    kept = {theirs for one in known for ours, theirs in one.names.items() if ours in there or ours in one.zeros}
    names |= {text for one in known for text in one.training if not any(within(name, text) for name in kept)}
    return {
        key: value
        for key, value in tensors.items()
        if key not in computed and not any(within(key, name) or parsed(name).captures(key) for name in names)
    }


def within(key: str, module: str) -> bool:
    """Whether a key or module is a module or in it."""
    return f"{key}.".startswith(f"{module}.")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_recorded(family: str) -> None:
    assert recordings(family)
    own, *others = FAMILIES[family].layouts
    assert all(ours == theirs for ours, theirs in own.names.items())
    assert all(layout.names.keys() <= own.names.keys() for layout in others)
    assert all(layout.tested and layout.library and layout.marks for layout in (own, *others))


@pytest.mark.parametrize(("network", "here", "there"), PAIRS)
def test_what_the_library_makes(network: str, here: str, there: str) -> None:
    wanted = load_file(RECORDED / network / f"{there}.safetensors")
    made = converted(laid(network, here), there, "out", is_verified=(network, here, there) in VERIFIED)
    assert same(made, stored_once(NETWORKS[network], there, wanted, here))


@pytest.mark.skipif(FULL, reason="a case of the test above")
def test_the_name_of_a_single_layer_is_written_if_a_later_rule_would_change_it() -> None:
    test_what_the_library_makes("glm-moe", "megatron-local-dist", "megatron")


def ways() -> list[tuple[str, str, str]]:
    """Each network with the layouts that it takes there and back, and those from which it comes.

    From a recorded layout and into it is tried above; here it is tried with one network of each family, which comes from
    one layout.
    """
    firsts = {family.name: network for network, family in reversed(NETWORKS.items())}
    found = [
        (network, here, name)
        for network, family in NETWORKS.items()
        for name in sorted({one.name for one in family.layouts if not one.only_written and not one.only_read})
        if (network, name) not in REFUSED and (name not in recordings(network) or firsts[family.name] == network)
        for here in recordings(network)
        if here != name and not all(one.only_read for one in family.named(here))
    ]
    recorded = {parts(pair)[0] for pair in PAIRS}
    return covering(found, lambda way: [(way[0], way[2]), *({parts(way)[0]} - recorded)])


@pytest.mark.costly
@pytest.mark.parametrize(("network", "here", "layout"), ways())
def test_there_and_back_is_the_identity(network: str, here: str, layout: str) -> None:
    family = NETWORKS[network]
    folder = laid(network, here)
    there = converted(folder, layout, "there")
    assert [(one.name, x.name) for one, x in recognised(there)] == [(family.name, layout)]
    back = converted(Path("there"), here, "back", is_verified=False)  # its values are those of the recording
    stored = load_file(folder / "model.safetensors")
    kept = stored_once(family, here, stored, layout)
    if back.keys() != kept.keys():  # without what is left out, it has the names of a network without a head
        assert kept.keys() < stored.keys()
        back, kept = converted(Path("back"), layout, "again", is_verified=False), there
    assert same(back, kept)


@pytest.mark.parametrize(("network", "layout"), sorted(REFUSED))
def test_networks_that_a_layout_cannot_have_are_an_error(network: str, layout: str) -> None:
    for here in recordings(network):
        with pytest.raises(PlanError, match="cannot be (reordered|converted)|no name in the layout|lacks the tensor"):
            cs.convert(laid(network, here), layout=layout)


def outputs() -> list[tuple[str, str]]:
    """The recordings of networks that their library ran."""
    return [
        (network, layout)
        for network in NETWORKS
        for layout in recordings(network)
        if (RECORDED / network / "outputs.safetensors").exists()
    ]


@pytest.mark.costly
@pytest.mark.parametrize(("network", "layout"), outputs())
def test_transformers_loads_it_and_computes_the_same(network: str, layout: str) -> None:
    import transformers

    folder = laid(network, layout)
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    plan = cs.transplant(folder / "model.safetensors", RECORDED / network / "config.json")
    cs.apply(plan, "made")
    model, report = getattr(transformers, name).from_pretrained("made", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    values = load_file(RECORDED / network / "outputs.safetensors")
    wanted = [values.pop(key) for key in sorted(values) if key.startswith("output")]
    with torch.no_grad():
        found: Any = model.eval()(**values)
    for one, other in zip(wanted, found.to_tuple(), strict=False):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
