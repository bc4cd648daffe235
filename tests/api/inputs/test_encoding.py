"""With ``encoding="dequantize"`` verbs compute with the weights that codes stand for, and write plain numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.planning.plan.plan import Plan

from ...helpers.quantised import Quantised
from ...helpers.zoo import BY_NAME, IN, OUT
from ...tensors.decoders.test_parts import MODELS

QUERY = "model.layers.0.self_attn.q_proj.weight"
MERGED = {"method": "linear", "weights": [0.5, 0.5]}


@pytest.fixture
def models(made: Path, tmp_path: Path) -> dict[str, Path]:
    """Two block-fp8 models and a GPTQ model with the same tensors, and the weights that each stands for, in float32."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return {folder.name: tmp_path / folder.name for folder in made.iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of ``models``, which are made once: each test gets copies."""
    root = tmp_path_factory.mktemp("models")
    for name, kind, seed in (("a", "fp8-block", 0), ("b", "fp8-block", 1), ("g", "gptq", 2)):
        folder = BY_NAME[kind].folder(root / name, seed)
        cs.apply(cs.convert(folder, dequantize=True, dtype="float32"), root / f"{name}-plain")
    return root


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def written(plan: Plan, folder: Path) -> dict[str, torch.Tensor]:
    """The tensors that a plan writes, after its verification: each is computed again, bit for bit."""
    cs.apply(plan, folder)
    report = cs.verify(folder)
    assert report.ok
    assert not report.not_compared
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert not cs.open_checkpoint(folder).codes
    return weights(folder)


@pytest.mark.long
def test_the_average_of_quantised_models_is_that_of_their_weights(models: dict[str, Path], tmp_path: Path) -> None:
    found = written(cs.average([models["a"], models["g"]], encoding="dequantize"), tmp_path / "out")
    a, g = weights(models["a-plain"]), weights(models["g-plain"])
    assert found.keys() == a.keys()
    for key, tensor in found.items():
        assert torch.equal(tensor, ((a[key].double() + g[key].double()) / 2).bfloat16()), key
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.long
def test_the_output_has_the_dtype_of_config_json(models: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((models["a"] / "config.json").read_text())
    (models["a"] / "config.json").write_text(json.dumps({**config, "torch_dtype": "float16"}))
    plan = cs.average([models["a"], models["b"]], encoding="dequantize")
    assert written(plan, tmp_path / "out")[QUERY].dtype == torch.float16
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "float16"


@pytest.mark.long
def test_a_quantised_model_is_merged_with_its_fine_tune(models: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    tuned = {key: (one + torch.randn_like(one) / 100).bfloat16() for key, one in weights(models["a-plain"]).items()}
    save_file(tuned, "tuned.safetensors")
    found = written(cs.merge([models["a"], "tuned.safetensors"], encoding="dequantize", **MERGED), tmp_path / "out")
    base = weights(models["a-plain"])
    for key, tensor in found.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, (0.5 * base[key] + 0.5 * tuned[key].float()).bfloat16()), key


@pytest.mark.long
def test_a_merge_with_a_base_of_another_encoding_is_that_of_the_weights(
    models: dict[str, Path], tmp_path: Path
) -> None:
    plan = cs.merge([models["a"], models["b"]], method="ties", base=models["g"], density=0.5, encoding="dequantize")
    found = written(plan, tmp_path / "out")
    plain = [models[f"{name}-plain"] for name in "abg"]
    cs.apply(cs.merge(plain[:2], method="ties", base=plain[2], density=0.5, dtype="bfloat16"), tmp_path / "wanted")
    wanted = weights(tmp_path / "wanted")
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.long
def test_a_recipe_of_mergekit_is_merged_with_the_same_option(
    models: dict[str, Path], tmp_path: Path, ckpt: Any
) -> None:
    Path("recipe.yaml").write_text(
        "merge_method: linear\nmodels:\n- {model: ./a, parameters: {weight: 1}}\n- {model: ./b, parameters: {weight: 1}}\n"
    )
    assert ckpt("merge", "recipe.yaml", "--encoding", "dequantize", "-o", "out").code == 0
    same = written(cs.merge([models["a"], models["b"]], encoding="dequantize", **MERGED), tmp_path / "same")
    assert all(torch.equal(one, same[key]) for key, one in weights(Path("out")).items())


def test_a_recipe_of_ours_has_the_option(models: dict[str, Path], tmp_path: Path, ckpt: Any) -> None:
    Path("recipe.yaml").write_text("verb: average\nsources: [a, b]\nencoding: dequantize\noutput: out\n")
    assert ckpt("apply", "recipe.yaml").code == 0
    assert ckpt("verify", "out").code == 0
    assert "quantization_config" not in json.loads(Path("out/config.json").read_text())


def adapter(path: Path) -> Path:
    """An adapter of the query projection."""
    torch.manual_seed(1)
    path.mkdir()
    stem = "base_model.model." + QUERY.removesuffix(".weight")
    state = {f"{stem}.lora_A.weight": torch.randn(4, IN), f"{stem}.lora_B.weight": torch.randn(OUT, 4)}
    save_file(state, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.costly
@pytest.mark.parametrize("name", ["a", "g"])
def test_an_adapter_is_added_to_the_weights_of_a_quantised_base(
    name: str, models: dict[str, Path], tmp_path: Path
) -> None:
    low = adapter(tmp_path / "low")
    found = written(cs.lora_merge(models[name], low, encoding="dequantize"), tmp_path / "out")
    cs.apply(cs.lora_merge(models[f"{name}-plain"], low, dtype="bfloat16"), tmp_path / "wanted")
    wanted = weights(tmp_path / "wanted")
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.long
def test_an_adapter_is_extracted_from_weights(models: dict[str, Path], tmp_path: Path) -> None:
    cs.apply(cs.lora_merge(models["a-plain"], adapter(tmp_path / "low"), dtype="float32"), tmp_path / "tuned")
    plan = cs.lora_extract(tmp_path / "tuned", models["a"], rank=4)
    cs.apply(plan, tmp_path / "out")
    assert cs.verify(tmp_path / "out").ok
    cs.apply(cs.lora_extract(tmp_path / "tuned", models["a-plain"], rank=4), tmp_path / "wanted")
    found, wanted = (load_file(tmp_path / one / "adapter_model.safetensors") for one in ("out", "wanted"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.costly
@pytest.mark.parametrize(("source", "destination"), [("a", "b-plain"), ("a-plain", "b"), ("g", "b"), ("a", "b")])
def test_weights_are_transplanted_between_encodings(
    source: str, destination: str, models: dict[str, Path], tmp_path: Path
) -> None:
    plan = cs.transplant(models[source], models[destination], exclude=["model.norm"], encoding="dequantize")
    found = written(plan, tmp_path / "out")
    stem = source.removesuffix("-plain")
    given, kept = weights(models[f"{stem}-plain"]), weights(models[f"{destination.removesuffix('-plain')}-plain"])
    dtype = torch.float32 if "plain" in destination else torch.bfloat16
    assert torch.equal(found[QUERY], given[QUERY].to(dtype))
    assert torch.equal(found["model.norm.weight"], kept["model.norm.weight"].to(dtype))


def test_values_that_a_quantised_destination_keeps_are_decoded(models: dict[str, Path], tmp_path: Path) -> None:
    plan = cs.transplant(models["a-plain"], models["g"], exclude=["**.q_proj"], encoding="dequantize")
    found = written(plan, tmp_path / "out")
    assert torch.equal(found[QUERY], weights(models["g-plain"])[QUERY].bfloat16())
    assert next(step for step in plan.steps if step.key == QUERY).op == "keep"


def test_a_policy_resizes_the_weights_that_codes_stand_for(models: dict[str, Path], tmp_path: Path) -> None:
    smaller = {key: tensor[: len(tensor) // 2].bfloat16() for key, tensor in weights(models["b-plain"]).items()}
    save_file(smaller, "smaller.safetensors")
    with pytest.raises(cs.PlanError, match='on_mismatch="slice" would use its codes as numbers'):
        cs.transplant(models["a"], "smaller.safetensors", on_mismatch="slice")
    plan = cs.transplant(models["a"], "smaller.safetensors", on_mismatch="slice", encoding="dequantize")
    cs.apply(plan, "out.safetensors")
    assert torch.equal(load_file("out.safetensors")[QUERY], weights(models["a-plain"])[QUERY][: OUT // 2].bfloat16())
    assert cs.verify("out.safetensors").ok


def test_a_live_module_gets_the_weights_that_codes_stand_for(models: dict[str, Path]) -> None:
    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = torch.nn.Linear(IN, OUT, bias=False)

    model = Attention()
    maps = {"model.layers.0.self_attn": ""}
    with pytest.raises(cs.PlanError, match="would use its codes as numbers"):
        cs.load_into(model, models["a"], include=["**.q_proj"], map=maps)
    cs.load_into(model, models["a"], include=["**.q_proj"], map=maps, encoding="dequantize")
    assert torch.equal(model.q_proj.weight, weights(models["a-plain"])[QUERY])


@pytest.mark.costly
@pytest.mark.parametrize("model", MODELS, ids=lambda one: one.name)
def test_every_encoding_that_is_decoded_is_averaged(model: Quantised, tmp_path: Path) -> None:
    first, second = model.folder(tmp_path / "a", 0), model.folder(tmp_path / "b", 1)
    found = written(cs.average([first, second], encoding="dequantize"), tmp_path / "out")
    for one in (first, second):
        cs.apply(cs.convert(one, dequantize=True, dtype="float32"), f"{one}-plain")
    a, b = (weights(Path(f"{one}-plain")) for one in (first, second))
    assert all(torch.equal(found[key], ((a[key].double() + b[key].double()) / 2).bfloat16()) for key in a)


VERBS: dict[str, Callable[[dict[str, Path], str], Plan]] = {
    "average": lambda at, encoding: cs.average([at["a"], at["b"]], encoding=encoding),
    "merge": lambda at, encoding: cs.merge([at["a"], at["b"]], encoding=encoding, **MERGED),
    "lora merge": lambda at, encoding: cs.lora_merge(at["a"], adapter(at["a"].parent / "low"), encoding=encoding),
    "transplant": lambda at, encoding: cs.transplant(at["a"], at["b-plain"], encoding=encoding),
}

EVERY = {**VERBS, "lora extract": lambda at, encoding: cs.lora_extract(at["a"], at["a-plain"])}


def test_a_transplant_refuses_codes_by_default_and_the_hint_names_the_option(models: dict[str, Path]) -> None:
    with pytest.raises(cs.PlanError) as error:
        cs.transplant(models["a"], models["b-plain"])
    assert error.value.exit_code == 4
    assert "--encoding dequantize" in error.value.hint


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_encoding_is_an_error(verb: str, models: dict[str, Path]) -> None:
    with pytest.raises(cs.ConfigError, match="encoding=.gguf. is unknown"):
        VERBS[verb](models, "gguf")


@pytest.mark.parametrize("verb", EVERY)
def test_what_no_decoder_knows_is_refused_with_its_reason(verb: str, models: dict[str, Path], tmp_path: Path) -> None:
    hqq = BY_NAME["hqq"].folder(tmp_path / "hqq")
    with pytest.raises(cs.PlanError, match="no decoder knows HQQ") as error:
        EVERY[verb]({**models, "a": hqq, "b": hqq}, "dequantize")
    assert error.value.exit_code == 4


@pytest.mark.parametrize("verb", EVERY)
def test_codes_that_are_needed_as_weights_are_refused_with_the_reason_why_they_stay_codes(
    verb: str, models: dict[str, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    BY_NAME["fp8-block"].folder(broken)
    tensors = weights(broken)
    lost = [key for key in tensors if key.endswith("weight_scale_inv")][-1]
    save_file({key: one for key, one in tensors.items() if key != lost}, broken / "model.safetensors")
    with pytest.raises(cs.PlanError, match=f"{lost.removesuffix('_scale_inv')} of .*broken .* cannot be decoded"):
        EVERY[verb]({**models, "a": broken, "b": broken}, "keep")


@pytest.mark.costly
@pytest.mark.parametrize("verb", EVERY)
def test_a_plan_in_a_file_makes_the_same(verb: str, models: dict[str, Path], tmp_path: Path) -> None:
    plan = EVERY[verb]({**models, "a-plain": models["g-plain"]}, "dequantize")
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    cs.apply(plan, "out")
    cs.apply(cs.load_plan("plan.json"), "again")
    (file,) = Path("out").glob("*.safetensors")
    assert file.read_bytes() == (Path("again") / file.name).read_bytes()


DECODING = {**EVERY, "convert": lambda at, encoding: cs.convert(at["a"], dequantize=encoding == "dequantize")}


@pytest.mark.costly
@pytest.mark.parametrize("verb", DECODING)
def test_the_settings_that_codes_are_decoded_with_must_not_change(verb: str, models: dict[str, Path]) -> None:
    plan = DECODING[verb]({**models, "a-plain": models["g-plain"]}, "dequantize")
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    config = json.loads((models["a"] / "config.json").read_text())
    del config["quantization_config"]["weight_block_size"]
    (models["a"] / "config.json").write_text(json.dumps(config))
    with pytest.raises(cs.PlanError, match=r"config.json has changed since the plan was made"):
        cs.apply(cs.load_plan("plan.json"), "out")


def test_models_without_codes_get_a_note(models: dict[str, Path]) -> None:
    plan = cs.average([models["a-plain"], models["b-plain"]], encoding="dequantize")
    assert any("--encoding dequantize changes nothing" in note for note in plan.notes)
    assert not any(
        "changes nothing" in note for note in cs.average([models["a"], models["b-plain"]], encoding="dequantize").notes
    )


def test_the_metadata_of_the_output_does_not_say_that_it_has_codes(models: dict[str, Path], tmp_path: Path) -> None:
    save_file(weights(models["a"]), "a.safetensors", {"quantization_config": json.dumps(BY_NAME["fp8-block"].settings)})
    cs.apply(cs.average(["a.safetensors", models["b"]], encoding="dequantize"), "out.safetensors")
    assert "quantization_config" not in cs.open_checkpoint("out.safetensors").metadata
    assert cs.verify("out.safetensors").ok


def test_the_cost_of_a_merge_counts_the_bytes_of_codes(models: dict[str, Path]) -> None:
    plan = cs.merge([models["a"], models["b"]], encoding="dequantize", **MERGED)
    assert plan.costs is not None
    assert plan.costs.nbytes_read == 2 * (models["a"] / "model.safetensors").stat().st_size - 2 * 8 - _headers(models)
    assert plan.costs.nbytes_written == 2 * sum(one.numel() for one in weights(models["a-plain"]).values())


def _headers(models: dict[str, Path]) -> int:
    files = [(models[name] / "model.safetensors").read_bytes() for name in "ab"]
    return sum(int.from_bytes(data[:8], "little") for data in files)
