"""LoHa, LoKr, OFT and Tucker decompositions are merged as they are, with PEFT and LyCORIS as the judges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import ckptsurgeon as cs
from ckptsurgeon.errors import ConfigError

from ...helpers.adapters import State

GOLDEN = Path(__file__).parents[3] / "fixtures" / "golden" / "lycoris"
KINDS = tuple(sorted(one.stem for one in GOLDEN.glob("lo*.safetensors")))


class Net(nn.Module):
    """An embedding, two linear layers and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 24)
        self.first = nn.Linear(24, 36)
        self.conv = nn.Conv2d(4, 8, 3)
        self.second = nn.Linear(36, 20)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


LAYERS = ["first", "conv", "second"]
PEFT: dict[str, Callable[[], Any]] = {
    "loha": lambda: peft.LoHaConfig(r=3, alpha=5),
    "loha-tucker": lambda: peft.LoHaConfig(r=3, alpha=5, use_effective_conv2d=True),
    "lokr-w1-w2": lambda: peft.LoKrConfig(r=8, alpha=5),
    "lokr-w2ab": lambda: peft.LoKrConfig(r=2, alpha=5, decompose_factor=2),
    "lokr-tucker": lambda: peft.LoKrConfig(r=2, alpha=5, decompose_factor=2, use_effective_conv2d=True),
    "lokr-both": lambda: peft.LoKrConfig(r=1, alpha=5, decompose_both=True, use_effective_conv2d=True),
    "oft": lambda: peft.OFTConfig(r=0, oft_block_size=4),
    "oft-blocks": lambda: peft.OFTConfig(r=2, oft_block_size=0),
    "oft-shared": lambda: peft.OFTConfig(r=0, oft_block_size=4, block_share=True),
    "oft-exact": lambda: peft.OFTConfig(r=0, oft_block_size=12, use_cayley_neumann=False),
    **{
        f"oft-{number}-terms": (lambda n=number: peft.OFTConfig(r=0, oft_block_size=4, num_cayley_neumann_terms=n))
        for number in range(1, 8)
    },
}  # fmt: skip


def merged_by_peft(config: Any, folder: str = "one", dtype: torch.dtype = torch.float32) -> State:
    """Save an adapter with random values in a folder and the base in base.safetensors; return the merged weights."""
    config.init_weights, config.target_modules = False, list(LAYERS)
    if isinstance(config, peft.OFTConfig):
        config.target_modules = [*LAYERS, "embed"]
    base = net().to(dtype)
    save_file(base.state_dict(), "base.safetensors")
    torch.manual_seed(1)
    model = peft.get_peft_model(base, config).eval()
    model.save_pretrained(folder)
    found: State = model.merge_and_unload().state_dict()
    return found


def distance(one: State, other: State) -> float:
    """Return the largest difference between two states."""
    assert one.keys() == other.keys()
    return max(float((one[key].double() - other[key].double()).abs().max()) for key in one)


@pytest.mark.parametrize("name", PEFT)
def test_the_weights_are_those_that_peft_merges(name: str) -> None:
    wanted = merged_by_peft(PEFT[name]())
    plan = cs.lora_merge("base.safetensors", "one")
    cs.apply(plan, "out.safetensors")
    found, base = load_file("out.safetensors"), dict(net().state_dict())
    assert not plan.notes
    assert distance(found, wanted) < 5e-7
    changed = {key for key in base if not torch.equal(base[key], found[key])}
    assert changed == (set() if name == "oft-1-terms" else set(_weights(name)))
    assert cs.verify("out.safetensors").ok
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    assert cs.verify("out.safetensors", plan="plan.json").ok


def _weights(name: str) -> list[str]:
    return [f"{layer}.weight" for layer in [*LAYERS, *(["embed"] if name.startswith("oft") else [])]]


@pytest.mark.parametrize("name", ["loha", "lokr-tucker", "oft", "oft-exact"])
def test_results_of_16_bits_are_rounded_once(name: str) -> None:
    merged_by_peft(PEFT[name](), dtype=torch.bfloat16)
    base, adapter = load_file("base.safetensors"), load_file("one/adapter_model.safetensors")
    save_file({key: value.float() for key, value in base.items()}, "wide.safetensors")
    save_file({key: value.float() for key, value in adapter.items()}, "one/adapter_model.safetensors")
    cs.apply(cs.lora_merge("base.safetensors", "one"), "out.safetensors")
    cs.apply(cs.lora_merge("wide.safetensors", "one"), "wide_out.safetensors")
    found, wide = load_file("out.safetensors"), load_file("wide_out.safetensors")
    assert all(value.dtype == torch.bfloat16 for value in found.values())
    differing = sum(int((found[key] != wide[key].bfloat16()).sum()) for key in found)
    assert differing <= 2  # rounded to float32 in between, a value may be rounded twice
    assert cs.verify("out.safetensors").ok


@pytest.mark.parametrize("name", KINDS)
def test_the_weights_compute_what_lycoris_computes(name: str) -> None:
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    save_file({key: value for key, value in tensors.items() if key.startswith("lycoris_")}, "a.safetensors")
    plan = cs.lora_merge(GOLDEN / "base.safetensors", "a.safetensors")
    cs.apply(plan, "out.safetensors")
    assert not plan.notes
    found, base = load_file("out.safetensors"), load_file(GOLDEN / "base.safetensors")
    for layer in ("first", "conv", "point"):
        run = torch.nn.functional.linear if layer == "first" else torch.nn.functional.conv2d
        given, wanted = tensors[f"input.{layer}"], tensors[f"output.{layer}"]
        apart = [run(given, one[f"{layer}.weight"], one[f"{layer}.bias"]) - wanted for one in (found, base)]
        assert float(apart[0].abs().max()) < 1e-5
        assert float(apart[1].abs().max()) > 0.01
    assert cs.verify("out.safetensors").ok


def test_the_recorded_adapters_have_all_decompositions() -> None:
    found = set()
    for name in KINDS:
        keys = load_file(GOLDEN / f"{name}.safetensors")
        found.add(" ".join(sorted(key.split(".", 1)[1] for key in keys if key.startswith("lycoris_conv."))))
    tucker = {"alpha hada_t1 hada_t2 hada_w1_a hada_w1_b hada_w2_a hada_w2_b", "alpha lokr_t2 lokr_w1 lokr_w2_a lokr_w2_b",
              "alpha lokr_t2 lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b",
              "alpha lora_down.weight lora_mid.weight lora_up.weight"}  # fmt: skip
    assert tucker <= found
    assert len(found) == 8


def test_adapters_of_several_kinds_are_added_with_their_weights() -> None:
    changes = []
    for name in ("loha", "oft"):
        merged = merged_by_peft(PEFT[name](), name)
        base = load_file("base.safetensors")
        changes.append({key: merged[key].double() - base[key].double() for key in base})
    cs.apply(cs.lora_merge("base.safetensors", ["loha", "oft"], weights=[0.5, -0.25]), "out.safetensors")
    wanted = {key: base[key].double() + 0.5 * changes[0][key] - 0.25 * changes[1][key] for key in base}
    assert distance(load_file("out.safetensors"), wanted) < 5e-7


def test_an_excluded_module_stays() -> None:
    merged = merged_by_peft(PEFT["oft"]())
    plan = cs.lora_merge("base.safetensors", "one", exclude="conv")
    cs.apply(plan, "out.safetensors")
    found, base = load_file("out.safetensors"), load_file("base.safetensors")
    assert torch.equal(found["conv.weight"], base["conv.weight"])
    assert not torch.equal(found["first.weight"], base["first.weight"])
    assert [key for _, key in plan.unexpected] == ["base_model.model.conv.oft_R.weight"]
    assert float((found["first.weight"] - merged["first.weight"]).abs().max()) < 5e-7


def test_a_lora_is_extracted_from_a_merged_oft(ckpt: Any) -> None:
    merged_by_peft(PEFT["oft"]())
    assert ckpt("lora", "merge", "base.safetensors", "one", "-o", "merged.safetensors").code == 0
    done = ckpt("lora", "extract", "merged.safetensors", "base.safetensors", "--rank", "24", "-o", "lora/")
    assert done.code == 0, done
    cs.apply(cs.lora_merge("base.safetensors", "lora"), "again.safetensors")
    found, wanted = load_file("again.safetensors"), load_file("merged.safetensors")
    assert (
        distance({key: found[key] for key in _weights("linear")}, {key: wanted[key] for key in _weights("linear")})
        < 1e-5
    )


def test_an_adapter_that_changes_nothing_is_said() -> None:
    config = peft.OFTConfig(r=0, oft_block_size=4, target_modules=list(LAYERS))
    save_file(net().state_dict(), "base.safetensors")
    peft.get_peft_model(net(), config).save_pretrained("one")
    receipt = cs.apply(cs.lora_merge("base.safetensors", "one"), "out.safetensors")
    assert any("changes nothing" in note for note in receipt.notes), receipt.notes


def test_a_loha_with_a_scale_of_zero_is_said() -> None:
    save_file({**conv_adapter("loha"), "lycoris_conv.alpha": torch.tensor(0.0)}, "a.safetensors")
    receipt = cs.apply(cs.lora_merge(GOLDEN / "base.safetensors", "a.safetensors"), "out.safetensors")
    assert any("changes nothing" in note for note in receipt.notes), receipt.notes


def test_a_decoded_base_has_no_note_on_other_checksums() -> None:
    merged_by_peft(PEFT["oft"]())
    wide = {
        key: value.repeat(8, 8) if value.dim() == 2 else value for key, value in load_file("base.safetensors").items()
    }
    save_file({key: value for key, value in wide.items() if key != "conv.weight"}, "wide.safetensors")
    cs.apply(cs.convert("wide.safetensors", quantize="int8"), "coded/")
    save_file({"first.lora_A.weight": torch.ones(1, 192), "first.lora_B.weight": torch.ones(288, 1)}, "a.safetensors")
    plan = cs.lora_merge("coded", "a.safetensors", encoding="dequantize")
    receipt = cs.apply(plan, "out.safetensors")
    assert not any("checksum" in note for note in receipt.notes), receipt.notes


def changed_config(**fields: Any) -> None:
    path = Path("one/adapter_config.json")
    data = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"coft": True}, "sets coft"),
        ({"use_cayley_neumann": None}, "use_cayley_neumann must be true or false"),
        ({"use_cayley_neumann": "yes"}, "use_cayley_neumann must be true or false"),
        ({"num_cayley_neumann_terms": 0}, "num_cayley_neumann_terms must be a whole number from 1 to 64"),
        ({"num_cayley_neumann_terms": 65}, "num_cayley_neumann_terms must be a whole number from 1 to 64"),
        ({"num_cayley_neumann_terms": True}, "num_cayley_neumann_terms must be a whole number from 1 to 64"),
        ({"peft_type": "LOHA", "alpha": 1, "r": 2}, "has the peft_type LOHA, but"),
        ({"peft_type": "BOFT"}, "only LORA, LOHA, LOKR and OFT can be used here"),
        ({"peft_type": "PREFIX_TUNING"}, "only LORA, LOHA, LOKR and OFT can be used here"),
    ],
)
def test_settings_that_cannot_be_used_are_errors(fields: dict[str, Any], message: str) -> None:
    merged_by_peft(PEFT["oft"]())
    changed_config(**fields)
    with pytest.raises(cs.ConfigError, match=message):
        cs.lora_merge("base.safetensors", "one")


def test_advice_on_a_prompt_is_not_to_merge_it() -> None:
    merged_by_peft(PEFT["oft"]())
    changed_config(peft_type="PREFIX_TUNING")
    with pytest.raises(cs.ConfigError) as caught:
        cs.lora_merge("base.safetensors", "one")
    assert caught.value.hint is not None
    assert "cannot be merged" in caught.value.hint
    assert "merge_and_unload" not in caught.value.hint


@pytest.mark.parametrize("name", ["loha-tucker", "lokr-tucker", "oft"])
def test_an_adapter_for_other_sizes_is_an_error(name: str) -> None:
    merged_by_peft(PEFT[name]())
    state = load_file("base.safetensors")
    save_file({**state, "conv.weight": torch.zeros(8, 5, 3, 3)}, "other.safetensors")
    with pytest.raises(cs.PlanError, match=r"does not fit conv.weight .* the weight is \(8, 5, 3, 3\)"):
        cs.lora_merge("other.safetensors", "one")


def conv_adapter(name: str = "loha-tucker") -> State:
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    return {key: value for key, value in tensors.items() if key.startswith("lycoris_conv.")}


BROKEN: dict[str, tuple[str, Callable[[State], State], str]] = {
    "no second core": ("loha-tucker", lambda own: {k: v for k, v in own.items() if "t2" not in k}, "lacks hada_t2"),
    "cores of other ranks": (
        "loha-tucker", lambda own: {**own, "lycoris_conv.hada_t1": torch.ones(3, 2, 3, 3)}, "do not fit each other"
    ),
    "a core without a kernel": (
        "locon-tucker", lambda own: {**own, "lycoris_conv.lora_mid.weight": torch.ones(2, 2)}, "do not fit each other"
    ),
    "a core of another rank": (
        "lokr-tucker", lambda own: {**own, "lycoris_conv.lokr_t2": torch.ones(2, 3, 3, 3)}, "do not fit each other"
    ),
    "a core and no factor": (
        "locon-tucker", lambda own: {k: v for k, v in own.items() if "up" not in k}, "no factor B for the same module"
    ),
    "an unknown tensor": (
        "loha", lambda own: {**own, "lycoris_conv.scalar": torch.ones(())}, "no LoRA adapter has: lycoris_conv.scalar"
    ),
    "a core and a whole matrix": (
        "lokr-tucker",
        lambda own: {
            **{k: v for k, v in own.items() if "w2" not in k}, "lycoris_conv.lokr_w2": torch.ones(8, 4, 3, 3)
        },
        "lacks lokr_w2_a and lokr_w2_b",
    ),
    "a core alone": ("lokr-tucker", lambda own: {k: v for k, v in own.items() if "t2" in k}, "lacks lokr_w1_a"),
    "a core of LoHa alone": ("loha-tucker", lambda own: {k: v for k, v in own.items() if "t1" in k}, "lacks hada_w1_a"),
    "a core of rank 0": (
        "locon-tucker",
        lambda own: {
            **own, "lycoris_conv.lora_mid.weight": torch.ones(0, 2, 3, 3),
            "lycoris_conv.lora_up.weight": torch.ones(16, 0, 1, 1),
        },
        "do not fit each other",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_decomposition_is_an_error(name: str) -> None:
    kind, broken, message = BROKEN[name]
    save_file(broken(conv_adapter(kind)), "a.safetensors")
    with pytest.raises(cs.FormatError, match=message):
        cs.lora_merge(GOLDEN / "base.safetensors", "a.safetensors")


def test_a_core_without_an_alpha_is_said() -> None:
    save_file(
        {key: value for key, value in conv_adapter("locon-tucker").items() if "alpha" not in key}, "a.safetensors"
    )
    plan = cs.lora_merge(GOLDEN / "base.safetensors", "a.safetensors")
    assert any("no alpha: scale 1 is assumed for 1 module" in note for note in plan.notes)


@pytest.mark.parametrize("terms", ["abc", [], None, True, 1e999])
def test_a_rotation_with_the_configuration_of_a_lora_is_an_error(terms: Any) -> None:
    merged_by_peft(PEFT["oft"]())
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "use_cayley_neumann": True}
    changed_config(**fields, num_cayley_neumann_terms=terms)
    with pytest.raises(cs.ConfigError, match=r"is not of an OFT|has the peft_type LORA, but"):
        cs.lora_merge("base.safetensors", "one")


@pytest.mark.parametrize("kind", [[], {}, 5, None])
def test_a_kind_that_is_no_text_is_an_error(kind: Any) -> None:
    merged_by_peft(PEFT["oft"]())
    changed_config(peft_type=kind)
    with pytest.raises(cs.ConfigError, match="has the peft_type"):
        cs.lora_merge("base.safetensors", "one")


HOSTILE: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
    "many digits": lambda term, own: term.update(kind="rotation " + "1" * 5000),
    "a blank": lambda term, own: term.update(kind="rotation "),
    "a sign": lambda term, own: term.update(kind="rotation +5"),
    "another kind": lambda term, own: term.update(kind="hadamard tucker"),
    "a scale": lambda term, own: term.update(scale=5.0),
    "a negative size": lambda term, own: own.update(shape=[1, -1]),
    "no elements": lambda term, own: own.update(shape=[1, 0]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_plan_with_another_rotation_is_an_error(name: str, ckpt: Any) -> None:
    merged_by_peft(PEFT["oft"]())
    data = cs.lora_merge("base.safetensors", "one").to_json()
    step = next(one for one in data["steps"] if one["key"] == "first.weight")
    HOSTILE[name](step["lora"][0], step["more"][0])
    Path("plan.json").write_text(json.dumps(data))
    done = ckpt("apply", "plan.json", "-o", "out.safetensors")
    assert done.code in (2, 3, 4), done
    assert "bug in ckpt" not in done.err


def test_magnitudes_of_a_loha_are_an_error() -> None:
    save_file({**conv_adapter("loha"), "lycoris_conv.dora_scale": torch.ones(16, 1, 1, 1)}, "a.safetensors")
    with pytest.raises(cs.PlanError, match="conv .*has DoRA's magnitudes"):
        cs.lora_merge(GOLDEN / "base.safetensors", "a.safetensors")


def test_a_value_that_is_not_finite_is_counted() -> None:
    tensors = conv_adapter("lokr")
    tensors["lycoris_conv.lokr_w1"][0, 0] = float("inf")
    save_file(tensors, "a.safetensors")
    receipt = cs.apply(cs.lora_merge(GOLDEN / "base.safetensors", "a.safetensors"), "out.safetensors")
    assert any("infinite or NaN" in note for note in receipt.notes), receipt.notes


def test_a_changed_rotation_fails_the_verification() -> None:
    merged_by_peft(PEFT["oft"]())
    cs.apply(cs.lora_merge("base.safetensors", "one"), "out.safetensors")
    state = load_file("out.safetensors")
    state["first.weight"][3, 5] += 1e-3
    save_file(state, "out.safetensors")
    plan = cs.lora_merge("base.safetensors", "one")
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    assert not cs.verify("out.safetensors", plan="plan.json").ok


def test_too_little_memory_is_an_error_before_anything_is_written() -> None:
    save_file({"wide.weight": torch.zeros(8, 4096)}, "base.safetensors")
    config = {"peft_type": "OFT", "use_cayley_neumann": False, "r": 1, "target_modules": ["wide"]}
    Path("one").mkdir()
    Path("one/adapter_config.json").write_text(json.dumps(config))
    elements = torch.zeros(1, 2048 * 2047 // 2)
    save_file({"base_model.model.wide.oft_R.weight": elements}, "one/adapter_model.safetensors")
    with pytest.raises(cs.PlanError, match="memory"):
        cs.apply(cs.lora_merge("base.safetensors", "one", memory="64MB"), "out.safetensors")
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize("verb", [cs.lora_convert, cs.lora_merge])
def test_a_lora_of_a_convolution_with_groups_is_said(verb: Callable[..., Any]) -> None:
    """Its factor B has a part of the rank; PEFT, too, refuses to merge it."""
    base = nn.Sequential(nn.Conv1d(16, 16, 3, groups=4), nn.Linear(4, 4))
    save_file(base.state_dict(), "base.safetensors")
    with pytest.warns(UserWarning, match="Merging is not supported"):
        model = peft.get_peft_model(base, peft.LoraConfig(r=8, target_modules=["0", "1"]))
    model.save_pretrained("one")
    with pytest.raises(NotImplementedError):
        model.merge_and_unload()
    arguments = ("base.safetensors", "one") if verb is cs.lora_merge else ("one",)
    with pytest.raises(ConfigError, match="^0 of one is the LoRA of a convolution with 4 groups"):
        verb(*arguments, **({} if verb is cs.lora_merge else {"to": "kohya"}))
    cs.apply(cs.filter("one", exclude=["**.0.lora_*"]), "two")
    cs.apply(cs.lora_merge("base.safetensors", "two"), "out.safetensors")
    assert torch.equal(load_file("out.safetensors")["0.weight"], load_file("base.safetensors")["0.weight"])
