"""What is computed from quantised models is encoded again as they are; what nothing changes is copied byte for byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.engine.compute import adding_lora, encoding, one_block, transposed_codes
from ckptsurgeon.planning.plan.plan import Plan
from ckptsurgeon.tensors.encoders import _encode, _extremes

from ...helpers.coded_matrices import words as coded_words
from ...helpers.four_bits import FOUR_BITS
from ...helpers.zoo import BY_NAME, IN, OUT, Quantised
from ...tensors.decoders.test_parts import exponents_of_one
from ..quantising.test_quantising import saved


def with_order(name: str, end: str, **said: Any) -> Quantised:
    """A model whose columns are in another order (``desc_act``, ``actorder``), a different one in each tensor."""
    model = BY_NAME[name]

    def store(draw: torch.Generator) -> dict[str, torch.Tensor]:
        return {**model.store(draw), end: torch.randperm(IN, generator=draw).int() // 32}

    return replace(model, name=f"{name}-ordered", store=store, settings={**model.settings, **said})


ACTORDER = {"group_0": {"weights": {"num_bits": 4, "group_size": 32, "strategy": "group", "actorder": "group"}}}
IN_ANY_ORDER = {
    "gptq-ordered": with_order("gptq", ".g_idx", desc_act=True),
    "int4-packed-ordered": with_order("int4-packed", ".weight_g_idx", config_groups=ACTORDER),
}
MODELS = {**IN_ANY_ORDER, **BY_NAME, **FOUR_BITS, **{name: exponents_of_one(name) for name in ("mxfp4", "mxfp4-quark")}}

STEM = "model.layers.0.self_attn.q_proj"
QUERY, OTHER = f"{STEM}.weight", "model.layers.0.self_attn.k_proj."
MERGED = {"method": "linear", "weights": [0.5, 0.5]}

ERRORS = {
    "fp8-block": 2**-4, "fp8-tensor": 2**-4, "fp8-channel": 2**-4, "fp8-comfy": 2**-4, "fp8-descale": 2**-4,
    "nvfp4-packed": 0.15, "int8": 0.02, "int4-packed": 0.15, "int4-second-group": 0.15,
    "bnb-nf4-sound": 0.12, "bnb-nf4-nested": 0.12, "bnb-fp4-sound": 0.2, "bnb-fp4-nested": 0.2,
    "mlx": 0.15, "mlx-other-bits": 0.01, "mlx-other-groups": 0.01,
    "nvfp4-modelopt": 0.15, "mxfp4-quark": 0.3, "fp4-deepseek-v4": 0.3,
    "gptq-ordered": 0.15, "int4-packed-ordered": 0.15,
    "bnb-int8": 0.01, "gptq": 0.15, "gptq-3bit": 0.3, "gptq-plain": 0.01, "awq": 0.15,
}  # fmt: skip
"""Encodings that are kept, and the largest relative error of rounding to them: fp8 has three bits after the first."""


def adapter(path: Path) -> Path:
    """An adapter of the query projection."""
    torch.manual_seed(1)
    path.mkdir()
    stem = f"base_model.model.{STEM}"
    state = {f"{stem}.lora_A.weight": torch.randn(4, IN) / 10, f"{stem}.lora_B.weight": torch.randn(OUT, 4) / 10}
    save_file(state, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def plain(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that the codes of a folder stand for, in float32; those of one model are decoded once."""
    files = [folder / name for name in ("config.json", "model.safetensors")]
    content = b"".join(path.read_bytes() for path in files if path.exists())
    if content not in DECODED:
        DECODED[content] = (decoded(folder) / "model.safetensors").read_bytes()
    return load(DECODED[content])


DECODED: dict[bytes, bytes] = {}


def decoded(folder: Path) -> Path:
    target = Path(f"{folder}-plain")
    if not target.exists():
        cs.apply(cs.convert(folder, dequantize=True, dtype="float32"), target)
    return target


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def checked(plan: Plan, folder: Path) -> cs.Receipt:
    """Apply a plan; verify computes all parts of quantised tensors again, bit for bit."""
    receipt = cs.apply(plan, folder)
    report = cs.verify(folder)
    assert report.ok
    assert not report.not_compared
    return receipt


VERBS: dict[str, Callable[[Path, Path], Plan]] = {
    "lora merge": lambda a, b: cs.lora_merge(a, adapter(a.parent / "low")),
    "average": lambda a, b: cs.average([a, b]),
    "merge": lambda a, b: cs.merge([a, b], **MERGED),
    "merge with a base": lambda a, b: cs.merge([b], method="task_arithmetic", base=a, weights=[0.5]),
}


@pytest.mark.costly
@pytest.mark.each_value
@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("verb", VERBS)
def test_the_output_is_quantised_as_its_first_source(verb: str, name: str, tmp_path: Path) -> None:
    a, b = (MODELS[name].folder(tmp_path / one, seed) for seed, one in enumerate("ab"))
    receipt = checked(VERBS[verb](a, b), tmp_path / "out")
    ours, theirs = cs.open_checkpoint(tmp_path / "out"), cs.open_checkpoint(a)
    assert {key: (one.dtype, one.shape) for key, one in ours.items()} == {
        k: (v.dtype, v.shape) for k, v in theirs.items()
    }
    assert [(one.method, one.shape) for one in ours.codes.tensors] == [
        (o.method, o.shape) for o in theirs.codes.tensors
    ]
    configs = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", a)]
    assert configs[0].get("quantization_config") == configs[1].get("quantization_config")
    first, second = plain(a)[QUERY], plain(b)[QUERY]
    if verb == "lora merge":
        low = load_file(tmp_path / "low/adapter_model.safetensors")
        down, up = (low[f"base_model.model.{STEM}.lora_{part}.weight"] for part in "AB")
        wanted = first + 2 * up @ down
    else:
        wanted = (first + second) / 2
    assert distance(plain(tmp_path / "out")[QUERY], wanted) < ERRORS[name]
    (error,) = (one.error for one in receipt.rounded if one.key == QUERY)
    assert 0 < error < ERRORS[name]


EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"


@pytest.mark.costly
@pytest.mark.parametrize("name", ["mxfp4", "fp4-experts", "fp8-experts"])
@pytest.mark.parametrize("elements", [1 << 20, 1 << 11])
@pytest.mark.parametrize("verb", ["average", "merge"])
def test_experts_in_one_tensor_stay_encoded(
    verb: str, elements: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (encoding, transposed_codes):
        monkeypatch.setattr(module, "ELEMENTS", elements)
    a, b = (MODELS[name].folder(tmp_path / one, seed) for seed, one in enumerate("ab"))
    checked(VERBS[verb](a, b), tmp_path / "out")
    ours, theirs = cs.open_checkpoint(tmp_path / "out"), cs.open_checkpoint(a)
    assert {k: (v.dtype, v.shape) for k, v in ours.items()} == {k: (v.dtype, v.shape) for k, v in theirs.items()}
    wanted = (plain(a)[EXPERTS] + plain(b)[EXPERTS]) / 2
    assert distance(plain(tmp_path / "out")[EXPERTS], wanted) < 0.3


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.each_value
@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("verb", ["lora merge", "average"])
def test_blocks_of_any_size_give_the_same_parts(
    verb: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are computed in blocks, scales are found in others, and codes are rounded in others again."""
    a, b = (MODELS[name].folder(tmp_path / one, seed) for seed, one in enumerate("ab"))
    plan = VERBS[verb](a, b)
    cs.apply(plan, tmp_path / "out")
    for elements, of_weights in ((1 << 7, 1 << 20), (1 << 10, 1 << 9), (1 << 12, 300)):
        for module in (encoding, transposed_codes, _encode):
            monkeypatch.setattr(module, "ELEMENTS", elements)
        monkeypatch.setattr(_extremes, "ELEMENTS", 100)
        monkeypatch.setattr(adding_lora, "ADAPTING_ELEMENTS", of_weights)
        monkeypatch.setattr(one_block, "CACHED", of_weights)
        cs.apply(plan, tmp_path / "again", force=True)
        assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()


def test_only_what_an_adapter_changes_is_rounded_again(tmp_path: Path) -> None:
    base = BY_NAME["fp8-block"].folder(tmp_path / "a", 0)
    receipt = checked(cs.lora_merge(base, adapter(tmp_path / "low")), tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out"))
    changed = {
        key for key, one in after.items() if not torch.equal(one.view(torch.uint8), before[key].view(torch.uint8))
    }
    assert changed == {QUERY, f"{STEM}.weight_scale_inv"}
    assert [one.key for one in receipt.rounded] == [QUERY]


def test_blocks_of_fp8_are_those_of_transformers(tmp_path: Path) -> None:
    base = BY_NAME["fp8-block"].folder(tmp_path / "a", 0)
    rows, columns = BY_NAME["fp8-block"].settings["weight_block_size"]
    checked(cs.lora_merge(base, adapter(tmp_path / "low")), tmp_path / "out")
    cs.apply(cs.lora_merge(f"{base}", tmp_path / "low", encoding="dequantize", dtype="float32"), tmp_path / "wide")
    wide = load_file(tmp_path / "wide/model.safetensors")[QUERY]
    parts = wide.reshape(OUT // rows, rows, IN // columns, columns)
    times = 448.0 / parts.abs().amax(dim=(1, 3))
    codes = (parts * times[:, None, :, None]).clamp(-448, 448).reshape(OUT, IN).to(torch.float8_e4m3fn)
    found = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(found[QUERY].view(torch.uint8), codes.view(torch.uint8))
    assert torch.equal(found[f"{STEM}.weight_scale_inv"], 1 / times)


def test_the_plan_says_what_is_encoded_again(tmp_path: Path) -> None:
    a, b = (BY_NAME["fp8-block"].folder(tmp_path / one, seed) for seed, one in enumerate("ab"))
    (note,) = (one for one in cs.average([a, b]).notes if "encoded again" in one)
    assert note.startswith("2 weights are decoded, computed and encoded again (fp8 with block scales), as in a:")


@pytest.mark.parametrize("verb", ["average", "merge", "task_arithmetic"])
def test_the_plan_says_what_is_decoded_and_written_as_plain_numbers(verb: str, tmp_path: Path) -> None:
    coded, other = (BY_NAME["fp8-block"].folder(tmp_path / one, seed) for seed, one in enumerate("ab"))
    save_file({key: one.bfloat16() for key, one in plain(other).items()}, "plain.safetensors")
    plans = {
        "average": lambda: cs.average(["plain.safetensors", coded]),
        "merge": lambda: cs.merge(["plain.safetensors", coded], method="linear", weights=[0.5, 0.5]),
        "task_arithmetic": lambda: cs.merge([coded], method="task_arithmetic", base="plain.safetensors"),
    }
    (note,) = (one for one in plans[verb]().notes if "decoded" in one)
    assert note.startswith(
        "2 weights of a are decoded (fp8 with block scales) and written as plain bfloat16, because plain.safetensors"
    )
    assert not any("decoded" in one for one in cs.average(["plain.safetensors", "plain.safetensors"]).notes)


def test_a_plain_first_source_gives_plain_weights(tmp_path: Path) -> None:
    coded, other = (BY_NAME["fp8-block"].folder(tmp_path / one, seed) for seed, one in enumerate("ab"))
    weights = {key: one.bfloat16() for key, one in plain(other).items()}
    save_file(weights, "plain.safetensors")
    checked(cs.average(["plain.safetensors", coded]), Path("out.safetensors"))
    found, theirs = load_file("out.safetensors"), plain(coded)
    assert all(torch.equal(one, ((weights[key].double() + theirs[key]) / 2).bfloat16()) for key, one in found.items())


def test_a_single_file_says_how_its_codes_are_decoded(tmp_path: Path) -> None:
    a, b = (BY_NAME["fp8-block"].folder(tmp_path / one, seed) for seed, one in enumerate("ab"))
    checked(cs.average([a, b]), Path("out.safetensors"))
    settings = json.loads(cs.open_checkpoint("out.safetensors").metadata["quantization_config"])
    assert settings == BY_NAME["fp8-block"].settings


def with_uneven_groups(path: Path, seed: int) -> Path:
    """A GPTQ model in which one group has a column of another."""
    folder = BY_NAME["gptq"].folder(path, seed)
    state = load_file(folder / "model.safetensors")
    for key in state:
        if key.endswith("g_idx"):
            state[key][0] = 1
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_an_encoding_without_an_encoder_is_named(verb: str, tmp_path: Path) -> None:
    a, b = (with_uneven_groups(tmp_path / one, seed) for seed, one in enumerate("ab"))
    with pytest.raises(cs.PlanError, match="new values cannot be stored that way: the groups of columns") as error:
        VERBS[verb](a, b)
    assert error.value.exit_code == 4
    assert "--encoding dequantize" in error.value.hint


def test_codes_that_no_adapter_changes_need_no_encoder(tmp_path: Path) -> None:
    base, low = with_uneven_groups(tmp_path / "a", 0), adapter(tmp_path / "low")
    before = load_file(base / "model.safetensors")
    words, size = before["model.embed_tokens.weight"].shape
    stem = "base_model.model.model.embed_tokens.lora_embedding_"
    save_file({f"{stem}A": torch.ones(4, words), f"{stem}B": torch.ones(size, 4)}, low / "adapter_model.safetensors")
    checked(cs.lora_merge(base, low), tmp_path / "out")
    after = load_file(tmp_path / "out/model.safetensors")
    assert [key for key in after if not torch.equal(after[key], before[key])] == ["model.embed_tokens.weight"]


def codes_of(words: torch.Tensor) -> torch.Tensor:
    """The codes of 4 bits in words of 32 bits, whose first row has the codes of the first 8 columns."""
    return (words[:, None, :].long() >> (4 * torch.arange(8)[None, :, None]) & 15).reshape(-1, words.shape[1])


@pytest.mark.costly
@pytest.mark.parametrize("verb", VERBS)
def test_columns_in_another_order_get_the_codes_and_scales_that_they_have_in_order(verb: str, tmp_path: Path) -> None:
    """The same weights with sorted columns, in another folder, are rounded to the same codes."""
    draw, low = torch.Generator().manual_seed(7), load_file(adapter(tmp_path / "low") / "adapter_model.safetensors")
    order = torch.randperm(IN, generator=draw)
    for seed, name in enumerate("ab"):
        for way in ("sorted", "ordered"):
            (tmp_path / way).mkdir(exist_ok=True)
            folder = BY_NAME["gptq"].folder(tmp_path / way / name, seed)
            state = load_file(folder / "model.safetensors")
            for key in [key for key in state if way == "ordered" and key.endswith("qweight")]:
                state[key] = coded_words(codes_of(state[key])[order].T.contiguous()).T.contiguous()
                state[key.replace("qweight", "g_idx")] = state[key.replace("qweight", "g_idx")][order].contiguous()
            save_file(state, folder / "model.safetensors")
    found = {}
    for way in ("sorted", "ordered"):
        if verb == "lora merge":
            given = {key: one[:, order].contiguous() if "lora_A" in key else one for key, one in low.items()}
            files = adapter(tmp_path / way / "low")
            save_file(given if way == "ordered" else low, files / "adapter_model.safetensors")
            plan = cs.lora_merge(tmp_path / way / "a", files)
        else:
            plan = VERBS[verb](tmp_path / way / "a", tmp_path / way / "b")
        checked(plan, tmp_path / way / "out")
        found[way] = load_file(tmp_path / way / "out/model.safetensors")
    assert torch.equal(found["ordered"][f"{STEM}.scales"], found["sorted"][f"{STEM}.scales"])
    assert torch.equal(found["ordered"][f"{STEM}.qzeros"], found["sorted"][f"{STEM}.qzeros"])
    codes = [codes_of(found[way][f"{STEM}.qweight"]) for way in ("ordered", "sorted")]
    assert torch.equal(codes[0], codes[1][order])
    assert not torch.equal(codes[1], codes_of(load_file(tmp_path / "sorted/a/model.safetensors")[f"{STEM}.qweight"]))


@pytest.mark.costly
@pytest.mark.parametrize("name", ["int4-packed", *IN_ANY_ORDER])
def test_a_plan_in_a_file_makes_the_same(name: str, tmp_path: Path) -> None:
    a, b = (MODELS[name].folder(tmp_path / one, seed) for seed, one in enumerate("ab"))
    plan = cs.merge([a, b], **MERGED)
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    cs.apply(plan, "out")
    cs.apply(cs.load_plan("plan.json"), "again")
    assert cs.load_plan("plan.json").sha256() == plan.sha256()
    assert Path("out/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()


@pytest.mark.long
def test_verify_finds_a_changed_code_and_a_changed_scale(tmp_path: Path) -> None:
    a, b = (BY_NAME["fp8-block"].folder(tmp_path / one, seed) for seed, one in enumerate("ab"))
    plan = cs.average([a, b])
    cs.apply(plan, tmp_path / "out")
    file = tmp_path / "out/model.safetensors"
    whole = load_file(file)
    for key in (QUERY, f"{STEM}.weight_scale_inv"):
        state = {name: one.clone() for name, one in whole.items()}
        state[key].view(torch.uint8).reshape(-1)[5] ^= 1
        save_file(state, file)
        assert {one.key for one in cs.verify(file, plan=plan).failed} >= {key}


@pytest.mark.parametrize(
    "change",
    [
        {"encoding": "gguf"}, {"role": "sum"}, {"dtype": "int8"}, {"steps": (32,)}, {"steps": (0, 64)},
        {"scale_dtype": "none"}, {"facts": ()}, {"shape": (OUT, IN + 1)}, {"facts": (("top", float("inf")),)},
    ],
)  # fmt: skip
def test_an_edited_plan_that_cannot_be_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    a, b = (BY_NAME["fp8-block"].folder(tmp_path / one, seed) for seed, one in enumerate("ab"))
    plan = cs.average([a, b])
    steps = [
        replace(one, coded=replace(one.coded, **change)) if one.coded is not None and one.coded.role == "codes" else one
        for one in plan.steps
    ]
    with pytest.raises(cs.PlanError, match="the plan is not possible"):
        cs.apply(replace(plan, steps=tuple(steps)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_values_that_no_code_stands_for_are_an_error(tmp_path: Path) -> None:
    base, low = BY_NAME["fp8-block"].folder(tmp_path / "a", 0), adapter(tmp_path / "low")
    state = load_file(low / "adapter_model.safetensors")
    state[f"base_model.model.{STEM}.lora_A.weight"][0, 0] = float("nan")
    save_file(state, low / "adapter_model.safetensors")
    with pytest.raises(cs.PlanError, match=r"q_proj\.weight has values that are NaN or infinite"):
        cs.apply(cs.lora_merge(base, low), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_recipe_of_mergekit_keeps_the_encoding(tmp_path: Path, ckpt: Any) -> None:
    for seed, one in enumerate("ab"):
        BY_NAME["fp8-block"].folder(tmp_path / one, seed)
    Path("recipe.yaml").write_text(
        "merge_method: linear\nmodels:\n- {model: ./a, parameters: {weight: 1}}\n- {model: ./b, parameters: {weight: 1}}\n"
    )
    assert ckpt("merge", "recipe.yaml", "-o", "out").code == 0
    assert ckpt("verify", "out").code == 0
    checked(cs.merge(["a", "b"], **MERGED), tmp_path / "same")
    assert Path("out/model.safetensors").read_bytes() == Path("same/model.safetensors").read_bytes()


@pytest.mark.costly
@pytest.mark.parametrize("source", ["plain", "gptq", "int8", "fp8-channel"])
@pytest.mark.parametrize("name", ["fp8-block", "int4-packed", "fp8-channel", "int8"])
def test_a_transplant_encodes_weights_as_the_destination_has_them(name: str, source: str, tmp_path: Path) -> None:
    if name == source:
        return  # copied, see below
    destination = BY_NAME[name].folder(tmp_path / "to", 0)
    given = BY_NAME["int4-packed" if source == "plain" else source].folder(tmp_path / "from", 1)
    values = plain(given)
    if source == "plain":
        given = decoded(given)
    receipt = checked(cs.transplant(given, destination, include=["**.q_proj"]), tmp_path / "out")
    ours, theirs = cs.open_checkpoint(tmp_path / "out"), cs.open_checkpoint(destination)
    assert {k: (v.dtype, v.shape) for k, v in ours.items()} == {k: (v.dtype, v.shape) for k, v in theirs.items()}
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["quantization_config"] == BY_NAME[name].settings
    assert distance(plain(tmp_path / "out")[QUERY], values[QUERY]) < ERRORS[name]
    assert [one.key for one in receipt.rounded] == [QUERY]
    before, after = (load_file(folder / "model.safetensors") for folder in (destination, tmp_path / "out"))
    assert all(
        torch.equal(after[key].view(torch.uint8), one.view(torch.uint8))
        for key, one in before.items()
        if STEM not in key
    )


def test_codes_of_the_same_encoding_are_copied_to_the_destination(tmp_path: Path) -> None:
    a, b = (BY_NAME["fp8-block"].folder(tmp_path / one, seed) for seed, one in enumerate("ab"))
    receipt = checked(cs.transplant(a, b), tmp_path / "out")
    assert not receipt.rounded
    assert (tmp_path / "out/model.safetensors").read_bytes()[-1000:] == (a / "model.safetensors").read_bytes()[-1000:]


def test_codes_under_other_settings_are_not_copied(tmp_path: Path) -> None:
    a, b = (BY_NAME["gptq"].folder(tmp_path / one, seed) for seed, one in enumerate("ab"))
    config = json.loads((a / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    (a / "config.json").write_text(json.dumps(config))
    with pytest.raises(cs.PlanError, match="the quantised tensors of a would be decoded with the settings of b"):
        cs.transplant(a, b)


def test_equal_codes_that_are_decoded_in_two_ways_are_noted(tmp_path: Path) -> None:
    a, b = (BY_NAME["gptq"].folder(tmp_path / one, 0) for one in "ab")
    said = f"{b} has the same weights as {a}, so these weights count twice"
    assert said in cs.average([a, b]).notes
    config = json.loads((b / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    (b / "config.json").write_text(json.dumps(config))
    otherwise = f"quantised codes mean different numbers in the two checkpoints: checkpoint_format is gptq in {a}, gptq_v2 in {b}"
    for plan in (cs.average([a, b]), cs.merge([a, b], method="linear", weights=[1, 1], encoding="dequantize")):
        assert otherwise in plan.notes
        assert said not in plan.notes


@pytest.mark.long
def test_a_policy_fits_a_plain_tensor_to_a_quantised_one(tmp_path: Path) -> None:
    destination = BY_NAME["fp8-block"].folder(tmp_path / "to", 0)
    torch.manual_seed(0)
    wide = torch.randn(OUT + 8, IN)
    save_file({QUERY: wide}, "wide.safetensors")
    checked(cs.transplant("wide.safetensors", destination, on_mismatch="slice"), tmp_path / "out")
    assert distance(plain(tmp_path / "out")[QUERY], wide[:OUT]) < ERRORS["fp8-block"]
    save_file({QUERY: wide[: OUT - 8].clone()}, "narrow.safetensors")
    with pytest.raises(cs.PlanError, match="new values cannot be stored that way: some of its values are initialised"):
        cs.transplant("narrow.safetensors", destination, on_mismatch="overlap")


DEEPSEEK = {
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 256,
    "intermediate_size": 256, "moe_intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 128, "q_lora_rank": 128, "qk_rope_head_dim": 128,
    "qk_nope_head_dim": 64, "v_head_dim": 64, "vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip


@pytest.mark.long
def test_transformers_computes_with_a_deepseek_that_keeps_its_fp8(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    cs.apply(cs.convert(saved(tmp_path / "m", DEEPSEEK), quantize="fp8-block"), tmp_path / "fp8")
    name, low = "model.layers.0.self_attn.o_proj", tmp_path / "low"
    shape = cs.open_checkpoint(tmp_path / "m")[f"{name}.weight"].shape
    torch.manual_seed(1)
    low.mkdir()
    pair = {"A": torch.randn(4, shape[1]) / 10, "B": torch.randn(shape[0], 4) / 10}
    save_file(
        {f"base_model.model.{name}.lora_{part}.weight": one for part, one in pair.items()},
        low / "adapter_model.safetensors",
    )
    (low / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["o_proj"]})
    )
    receipt = checked(cs.lora_merge(tmp_path / "fp8", low), tmp_path / "out")
    assert [one.key for one in receipt.rounded] == [f"{name}.weight"]
    cs.apply(cs.convert(tmp_path / "out", dequantize=True), tmp_path / "plain")
    tokens = torch.arange(1, 12).view(1, -1)
    with torch.no_grad():
        fp8, kept, decoded = (
            AutoModelForCausalLM.from_pretrained(tmp_path / one, dtype=torch.bfloat16).eval()(tokens).logits
            for one in ("fp8", "out", "plain")
        )
    assert torch.equal(kept, decoded)
    assert not torch.equal(kept, fp8)


@pytest.mark.parametrize("part", ["quant_map", "nested_quant_map"])
def test_a_map_of_bitsandbytes_with_other_values_is_an_error(part: str, tmp_path: Path) -> None:
    a = MODELS["bnb-nf4-nested"].folder(tmp_path / "a", 0)
    state = load_file(a / "model.safetensors")
    state[f"{STEM}.weight.{part}"][3] += 0.01
    save_file(state, a / "model.safetensors")
    with pytest.raises(cs.PlanError, match=rf"q_proj\.weight .* the values in the {part} are n") as error:
        cs.average([a, a])
    assert error.value.exit_code == 4


def test_global_scales_that_may_differ_where_weights_are_joined_are_said(tmp_path: Path) -> None:
    a, b = (BY_NAME["nvfp4-packed"].folder(tmp_path / one, seed) for seed, one in enumerate("ab"))
    (note,) = (one for one in cs.average([a, b]).notes if "global scale" in one)
    assert note.startswith("2 global scales of nvfp4 are computed for each weight alone; loaders that join weights")
    other = cs.average([BY_NAME["fp8-block"].folder(tmp_path / one) for one in "cd"])
    assert not any("global scale" in one for one in other.notes)


RETYPED = [
    *(("int8", "weight_zero_point", dtype) for dtype in (torch.int32, torch.uint8, torch.float32)),
    *(("nvfp4-modelopt", "weight_scale_2", dtype) for dtype in (torch.bfloat16, torch.float64)),
    *(("nvfp4-packed", "weight_global_scale", dtype) for dtype in (torch.bfloat16, torch.float64)),
    *(("bnb-nf4-nested", "weight.nested_absmax", dtype) for dtype in (torch.float16, torch.float64)),
]


@pytest.mark.parametrize(("name", "part", "dtype"), RETYPED, ids=lambda value: str(value).rpartition(".")[2])
def test_parts_of_a_dtype_in_which_nothing_computes_them_are_an_error(
    name: str, part: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    a = MODELS[name].folder(tmp_path / "a", 0)
    state = load_file(a / "model.safetensors")
    for key in [f"{STEM}.{part}", f"{OTHER}{part}"]:
        state[key] = state.get(key, torch.zeros(OUT, 1)).to(dtype)
    save_file(state, a / "model.safetensors")
    with pytest.raises(
        cs.PlanError,
        match=f"cannot be stored that way: no encoder computes the stored tensor {part.rpartition('.')[2]} as ",
    ):
        cs.average([a, a])


def layers_of(folder: Path, number: int) -> Path:
    """The folder with ``number`` layers."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": number}))
    return folder


def stacked(first: Path, second: Path) -> Plan:
    """The layers of one model, and then those of another."""
    recipe = first.parent / "recipe.yaml"
    slices = [{"sources": [{"model": str(one), "layer_range": [0, 1]}]} for one in (first, second)]
    recipe.write_text(json.dumps({"merge_method": "passthrough", "dtype": "bfloat16", "slices": slices}))
    return cs.merge(recipe)


@pytest.mark.long
def test_layers_of_a_quantised_model_are_stacked_as_they_are(tmp_path: Path) -> None:
    a, b = (layers_of(BY_NAME["fp8-block"].folder(tmp_path / one, seed), 1) for seed, one in enumerate("ab"))
    plan = stacked(a, b)
    assert any(one.startswith("the dtype bfloat16 does not apply to ") for one in plan.notes)
    checked(plan, tmp_path / "out")
    made, theirs = load_file(tmp_path / "out/model.safetensors"), load_file(b / "model.safetensors")
    for end in ("weight", "weight_scale_inv"):
        assert (
            made[f"{STEM.replace('0', '1')}.{end}"].view(torch.uint8).equal(theirs[f"{STEM}.{end}"].view(torch.uint8))
        )


@pytest.mark.parametrize("other", ["plain", "int8"])
def test_layers_that_are_not_quantised_alike_are_an_error(other: str, tmp_path: Path) -> None:
    a = layers_of(BY_NAME["fp8-block"].folder(tmp_path / "a", 0), 1)
    if other == "plain":
        cs.apply(cs.convert(a, dequantize=True), tmp_path / "b")
    else:
        layers_of(BY_NAME["int8"].folder(tmp_path / "b", 0), 1)
    with pytest.raises(
        cs.PlanError,
        match=r"layers\.1\..* would be stored as plain numbers, but the output has the quantization_config of a",
    ):
        stacked(a, tmp_path / "b")


@pytest.mark.long
def test_what_a_plain_model_gets_of_a_quantised_one_is_decoded(tmp_path: Path) -> None:
    b = layers_of(BY_NAME["fp8-block"].folder(tmp_path / "b", 0), 1)
    cs.apply(cs.convert(b, dequantize=True), tmp_path / "a")
    checked(stacked(tmp_path / "a", b), tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    assert not cs.inspect(tmp_path / "out").codes


def test_a_merge_does_not_note_the_dtype_of_weights_that_are_encoded_again(tmp_path: Path) -> None:
    a = BY_NAME["fp8-block"].folder(tmp_path / "a", 0)
    cs.apply(cs.convert(a, dequantize=True, dtype="float16"), tmp_path / "b")
    weights = [one.name for one in cs.open_checkpoint(a).codes.tensors]
    for kept, noted in (("keep", []), ("dequantize", weights)):
        plan = cs.merge([a, tmp_path / "b"], method="linear", weights=[1, 1], encoding=kept)
        (note,) = (one for one in plan.notes if "different dtypes" in one)
        assert [name for name in weights if name in note] == noted


def test_a_weight_that_only_another_model_has_is_an_error(tmp_path: Path) -> None:
    a, b = (BY_NAME["fp8-block"].folder(tmp_path / one, seed) for seed, one in enumerate("ab"))
    state = load_file(b / "model.safetensors")
    save_file(
        {**state, **{key.replace("layers.0", "layers.1"): one.clone() for key, one in state.items()}},
        b / "model.safetensors",
    )
    with pytest.raises(
        cs.PlanError,
        match=r"layers\.1\..* would be stored as plain numbers, but the output has the quantization_config of a",
    ):
        cs.merge([a, b], method="linear", weights=[0.5, 0.5], on_missing="any")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_dtype_is_not_that_of_codes_and_a_note_says_so(dtype: str, tmp_path: Path) -> None:
    base = BY_NAME["fp8-block"].folder(tmp_path / "a", 0)
    plan = cs.lora_merge(base, adapter(tmp_path / "low"), dtype=dtype)
    assert f"the dtype {dtype} does not apply to 2 quantised weights" in "".join(plan.notes)
    for step in plan.steps:
        assert not (step.coded and adding_lora.is_single(step))  # its scales are exact


@pytest.mark.long
def test_rows_of_integers_are_those_of_bitsandbytes(tmp_path: Path) -> None:
    """Its ``int8_vectorwise_quant``, in torch's functions; a row of zeros stays one."""
    a, b = (BY_NAME["bnb-int8"].folder(tmp_path / one, seed) for seed, one in enumerate("ab"))
    for folder in (a, b):
        state = load_file(folder / "model.safetensors")
        state[QUERY][3] = 0
        save_file(state, folder / "model.safetensors")
    checked(cs.average([a, b]), tmp_path / "out")
    wanted = (plain(a)[QUERY] + plain(b)[QUERY]) / 2
    largest = wanted.abs().max(1).values
    made = load_file(tmp_path / "out/model.safetensors")
    assert made[f"{STEM}.SCB"].equal(largest)
    rows = largest > 0
    assert made[QUERY][rows].equal(torch.round(wanted[rows] * (127 / largest[rows])[:, None]).to(torch.int8))
    assert not made[QUERY][3].any()
