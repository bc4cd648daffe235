"""Gram matrices of experts that one module stacks: each is of the inputs that are routed to its expert."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from fixtures.resizing.networks import NETWORKS

from .test_merged_inputs import joint
from .test_merged_inputs import merged as merged_jointly
from .test_statistics import ids, merged, saved
from .test_statistics import seen as seen_by_layers

transformers = pytest.importorskip("transformers", minversion="5")
RIDGE = 0.01


def of_kind(kind: str, seed: int) -> Any:
    name, fields = NETWORKS[kind]
    torch.manual_seed(seed)
    model = getattr(transformers, name)(transformers.CONFIG_MAPPING[kind](**fields)).eval()
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.02 * torch.randn_like(one))
    return model


def inner(module: Any, expert: int, x: torch.Tensor) -> torch.Tensor:
    """Return the input of an expert's last layer, by the formulas of Mixtral and Granite, or of gpt-oss."""
    weight = module.gate_up_proj[expert].double()
    if type(module).__name__ != "GptOssExperts":
        gate, up = (x @ weight.T).chunk(2, -1)
        return torch.nn.functional.silu(gate) * up
    both = x @ weight + module.gate_up_proj_bias[expert].double()
    gate, up = both[:, ::2].clamp(max=7.0), both[:, 1::2].clamp(-7.0, 7.0)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


def seen(model: Any, seed: int) -> dict[str, list[torch.Tensor]]:
    """Return the Gram matrices of the inputs of both layers of all experts, by name of the parameter."""
    found: dict[str, list[torch.Tensor]] = {}

    def look(name: str, module: Any, args: Any, kwargs: Any) -> None:
        hidden, chosen = [*args, *kwargs.values()][:2]
        for expert in range(module.down_proj.shape[0]):
            x = hidden.double()[(chosen == expert).any(-1)]
            for own, values in (("gate_up_proj", x), ("down_proj", inner(module, expert, x))):
                found.setdefault(f"{name}.{own}", []).append(values.T @ values / max(1, len(values)))

    for name, module in model.named_modules():
        if type(module).__name__.endswith("Experts"):
            module.register_forward_pre_hook(lambda *given, name=name: look(name, *given), with_kwargs=True)
    with torch.no_grad():
        model(ids(seed))
    return found


def by_formula(weights: list[torch.Tensor], grams: list[torch.Tensor], turned: bool) -> torch.Tensor:
    """RegMean of two models' weights of one expert: (sum G)^-1 sum G W, with a ridge and alpha of 0.9."""
    if not any(one.any() for one in grams):
        return sum(weights) / 2
    scaled = [(0.9 * one + 0.1 * one.diag().diag()) / 2 for one in grams]
    added = RIDGE * sum(scaled).diag().mean() * torch.eye(len(scaled[0])).double()
    scaled = [one + added / 2 for one in scaled]
    mine = [one.double() if turned else one.double().T for one in weights]
    made = torch.linalg.solve(sum(scaled), sum(g @ w for g, w in zip(scaled, mine, strict=True)))
    return made if turned else made.T


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "granitemoeshared", "gpt_oss"])
def test_each_expert_is_merged_by_the_inputs_that_are_routed_to_it(kind: str, tmp_path: Path) -> None:
    models = saved(tmp_path, lambda seed: of_kind(kind, seed), "a", "b", gram=True)
    merged(tmp_path, "regmean", ridge=RIDGE)
    grams = [seen(model, seed) for seed, model in enumerate(models)]
    made = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    own = [dict(model.named_parameters()) for model in models]
    checked = 0
    for name, value in made.named_parameters():
        for expert in range(len(value) if name in grams[0] else 0):
            wanted = by_formula(
                [one[name][expert].detach() for one in own], [one[name][expert] for one in grams], kind == "gpt_oss"
            )
            torch.testing.assert_close(value[expert].detach(), wanted.float(), rtol=1e-4, atol=1e-6)
            assert not torch.allclose(value[expert], (own[0][name][expert] + own[1][name][expert]) / 2, rtol=1e-3)
            checked += 1
    assert checked == 16  # two layers, with two parameters, of four experts


@pytest.mark.long
def test_experts_that_no_input_is_routed_to_are_averaged_and_said(tmp_path: Path) -> None:
    saved(tmp_path, lambda seed: of_kind("mixtral", seed), "a", "b")
    for name in "ab":
        save_file({"input_ids": torch.tensor([[5]])}, tmp_path / f"{name}.inputs.safetensors")
        plan = cs.stats(tmp_path / name, inputs=tmp_path / f"{name}.inputs.safetensors", gram=True)
        assert any("4 experts got no input" in note for note in plan.notes)
        cs.apply(plan, tmp_path / f"{name}.stats.safetensors")
    made = merged(tmp_path, "regmean")
    used = [load_file(tmp_path / f"{name}.stats.safetensors") for name in "ab"]
    own = [load_file(tmp_path / f"{name}/model.safetensors") for name in "ab"]
    key = "model.layers.0.block_sparse_moe.experts.{}.w2.weight"
    unused = [expert for expert in range(4) if not any(one[f"{key.format(expert)}.gram"].any() for one in used)]
    for expert in unused:
        name = key.format(expert)
        torch.testing.assert_close(made[name], (own[0][name] + own[1][name]) / 2)
    alone = [expert for expert in range(4) if used[0][f"{key.format(expert)}.gram"].any() and expert not in unused
             and not used[1][f"{key.format(expert)}.gram"].any()]  # fmt: skip
    assert unused or alone


def test_padding_is_routed_nowhere(tmp_path: Path) -> None:
    saved(tmp_path, lambda seed: of_kind("mixtral", seed), "a")
    mask = torch.ones(3, 10, dtype=torch.int64)
    mask[1, 6:] = 0
    found = []
    for tokens in (ids(0), torch.where(mask.bool(), ids(0), 7)):
        save_file({"input_ids": tokens, "attention_mask": mask}, tmp_path / "batch.safetensors")
        cs.apply(
            cs.stats(tmp_path / "a", inputs=tmp_path / "batch.safetensors", gram=True), tmp_path / "s.safetensors",
            force=True,
        )  # fmt: skip
        found.append(load_file(tmp_path / "s.safetensors"))
    keys = [key for key in found[0] if ".experts." in key and key.endswith(".gram")]
    assert len(keys) == 24
    for key in keys:
        torch.testing.assert_close(found[0][key], found[1][key])


@pytest.mark.long
def test_an_expert_that_one_model_uses_is_the_expert_of_this_model(tmp_path: Path) -> None:
    saved(tmp_path, lambda seed: of_kind("mixtral", seed), "a", "b")
    many = torch.randint(1, 30, (40, 20), generator=torch.Generator().manual_seed(0))
    for name, tokens in (("a", many), ("b", torch.tensor([[5]]))):
        save_file({"input_ids": tokens}, tmp_path / f"{name}.inputs.safetensors")
        plan = cs.stats(tmp_path / name, inputs=tmp_path / f"{name}.inputs.safetensors", gram=True)
        cs.apply(plan, tmp_path / f"{name}.stats.safetensors")
    made = merged(tmp_path, "regmean", ridge=0.0)
    used = [load_file(tmp_path / f"{name}.stats.safetensors") for name in "ab"]
    own = [load_file(tmp_path / f"{name}/model.safetensors") for name in "ab"]
    keys = [key for key in own[0] if ".experts." in key]
    alone = [key for key in keys if used[0][f"{key}.gram"].any() and not used[1][f"{key}.gram"].any()]
    assert len(alone) == 12  # b uses two of the four experts in each of two layers
    for key in alone:
        torch.testing.assert_close(made[key], own[0][key], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(made[key], (own[0][key] + own[1][key]) / 2, rtol=1e-2)


def by_the_paper(models: list[Any], turned: bool) -> dict[str, torch.Tensor]:
    """RegMean++ (arXiv 2508.03121, algorithm 1): each model with the merged blocks so far runs on its own inputs."""
    own, made = [dict(one.named_parameters()) for one in models], dict[str, torch.Tensor]()
    for block in ("model.embed_tokens.", "model.layers.0.", "model.layers.1.", "model.norm.", "lm_head."):
        grams: list[dict[str, Any]] = []
        for seed, model in enumerate(models):
            mixed = deepcopy(model)
            mixed.load_state_dict(made, strict=False)
            grams.append({**seen_by_layers(mixed, seed), **seen(mixed, seed)})
        for name in [one for one in own[0] if one.startswith(block)]:
            values, found = [one[name].detach() for one in own], [one.get(name) for one in grams]
            if ".experts." in name and found[0] is not None:
                parts = zip(*values, strict=True), zip(*found, strict=True)
                made[name] = torch.stack([by_formula(list(w), list(g), turned) for w, g in zip(*parts, strict=True)])
            else:
                made[name] = sum(values) / 2 if found[0] is None else by_formula(values, found, False)
    return made


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_experts_are_merged_by_their_inputs_in_the_merged_model(kind: str, tmp_path: Path) -> None:
    (model,) = saved(tmp_path, lambda seed: of_kind(kind, seed), "a")
    model.save_pretrained(tmp_path / "b")
    save_file({"input_ids": ids(4)}, tmp_path / "b.inputs.safetensors")
    joint(tmp_path, "a", "b")
    own = load_file(tmp_path / "a/model.safetensors")
    for key, value in merged_jointly(tmp_path, "a", "b").items():
        assert torch.equal(value, own[key])
    models = saved(tmp_path, lambda seed: of_kind(kind, seed), "a", "b")
    joint(tmp_path, "a", "b", parameters={"ridge": RIDGE})
    assert merged_jointly(tmp_path, "a", "b", ridge=RIDGE).keys() == own.keys()
    wanted = by_the_paper(models, kind == "gpt_oss")
    made = dict(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").named_parameters())
    assert made.keys() == wanted.keys()
    for name, value in made.items():
        torch.testing.assert_close(value.detach(), wanted[name].float(), rtol=1e-4, atol=1e-5)


@pytest.mark.costly
@pytest.mark.parametrize("chosen", ["**.w1.weight", "**.experts.0.w1.weight,**.w3.weight"])
def test_a_part_of_a_tensor_that_the_network_makes_of_experts_is_an_error(chosen: str, tmp_path: Path) -> None:
    """The merged block would have all of it by RegMean, but ckpt merge would average what is left out."""
    saved(tmp_path, lambda seed: of_kind("mixtral", seed), "a", "b")
    with pytest.raises(
        cs.ConfigError,
        match=r"one tensor, .*experts\.gate_up_proj, for chosen tensors .* Not chosen are .*w[13]\.weight",
    ):
        joint(tmp_path, "a", "b", include=chosen.split(","))
    joint(tmp_path, "a", "b", include=["**.w1.weight", "**.w3.weight"])


@pytest.mark.long
def test_experts_without_magnitudes_are_not_to_be_collected(tmp_path: Path) -> None:
    saved(tmp_path, lambda seed: of_kind("mixtral", seed), "base", "a", magnitudes=True)
    statistics = {"base": tmp_path / "base.stats.safetensors"}
    given: dict[str, Any] = {"method": "aim", "base": tmp_path / "base", "statistics": statistics}
    with pytest.raises(cs.PlanError, match=r"lack the magnitudes of inputs of 24 tensors: .*experts") as error:
        cs.merge([tmp_path / "a"], **given)
    assert error.value.hint.startswith("Do not scale these changes: --param missing=unscaled.")
    assert "Collect" not in error.value.hint
    cs.merge([tmp_path / "a"], **given, missing="unscaled")


def test_a_module_that_computes_in_another_way_has_no_gram_matrices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.mixtral import modeling_mixtral

    before = modeling_mixtral.MixtralExperts.forward
    monkeypatch.setattr(modeling_mixtral.MixtralExperts, "forward", lambda *given: 2 * before(*given))
    saved(tmp_path, lambda seed: of_kind("mixtral", seed), "a", "b", gram=True)
    with pytest.raises(cs.PlanError, match=r"lack the Gram matrix of 24 tensors: .*experts\.0\.w1"):
        merged(tmp_path, "regmean")
    merged(tmp_path, "regmean", missing="average")
