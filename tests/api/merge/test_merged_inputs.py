"""RegMean++: Gram matrices of the inputs in the merged model, as the paper's algorithm computes them in plain torch."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.merge import merged_inputs

from .test_statistics import gpt2, ids, llama, measured, saved, trained

transformers = pytest.importorskip("transformers", minversion="5")
Ckpt = Callable[..., Any]
Tensors = dict[str, torch.Tensor]


def joint(tmp_path: Path, *names: str, **more: Any) -> Path:
    """Write the statistics of models that are merged while they run, each on its own inputs; return their file."""
    first, *others = names
    plan = cs.stats(
        tmp_path / first, inputs=tmp_path / f"{first}.inputs.safetensors", gram=True,
        merged_with={str(tmp_path / one): str(tmp_path / f"{one}.inputs.safetensors") for one in others}, **more,
    )  # fmt: skip
    cs.apply(plan, tmp_path / "joint.safetensors", force=True)
    return tmp_path / "joint.safetensors"


def merged(tmp_path: Path, *names: str, **more: Any) -> Tensors:
    plan = cs.merge(
        [tmp_path / one for one in names], method="regmean_plusplus", statistics=str(tmp_path / "joint.safetensors"),
        **more,
    )  # fmt: skip
    cs.apply(plan, tmp_path / "out", force=True)
    assert cs.verify(tmp_path / "out").ok
    return load_file(tmp_path / "out/model.safetensors")


def by_formula(weights: list[torch.Tensor], grams: list[torch.Tensor], alpha: float) -> torch.Tensor:
    """RegMean of weights (out, in): (sum G)^-1 sum G W, with elements off the diagonal times alpha."""
    scaled = [alpha * one + (1 - alpha) * one.diag().diag() for one in grams]
    total = sum(g @ w.double().T for g, w in zip(scaled, weights, strict=True))
    return torch.linalg.solve(sum(scaled), total).T


def merged_module(modules: list[Any], into: Any, grams: list[Tensors], alpha: float) -> None:
    """Give ``into`` the merged parameters of modules: linear layers by RegMean, others averaged."""
    own = [dict(one.named_parameters()) for one in modules]
    for name, target in into.named_parameters():
        values = [one[name].detach() for one in own]
        module = name.removesuffix(".weight")
        made = by_formula(values, [one[module] for one in grams], alpha) if module in grams[0] else sum(values) / 2
        target.copy_(made)


def watched(module: Any, run: Callable[[], Any]) -> Tensors:
    """Return the Gram matrices of the inputs of all linear layers of a module while it runs."""
    found: Tensors = {}
    hooks = []
    for name, one in module.named_modules():
        if isinstance(one, torch.nn.Linear):

            def look(_: Any, args: Any, out: Any, name: str = name) -> None:
                flat = args[0].double().reshape(-1, args[0].shape[-1])
                found[name] = flat.T @ flat / len(flat)

            hooks.append(one.register_forward_hook(look))
    run()
    for hook in hooks:
        hook.remove()
    return found


def by_the_paper(models: list[Any], texts: list[torch.Tensor], alpha: float) -> Tensors:
    """RegMean++ (arXiv 2508.03121, algorithm 1) for Llama: one layer after the other, in the order of the forward."""
    made = transformers.LlamaForCausalLM(models[0].config).eval()
    merged_module([one.model.embed_tokens for one in models], made.model.embed_tokens, [{}], alpha)
    hidden = [made.model.embed_tokens(one) for one in texts]
    places = torch.arange(texts[0].shape[1])[None]
    rotary = made.model.rotary_emb(hidden[0], places)
    future = torch.full((texts[0].shape[1],) * 2, float("-inf")).triu(1)[None, None]

    def run(layer: Any, values: torch.Tensor) -> torch.Tensor:
        out = layer(values, attention_mask=future, position_embeddings=rotary, position_ids=places)
        return out[0] if isinstance(out, tuple) else out

    for number, layer in enumerate(made.model.layers):
        own = [one.model.layers[number] for one in models]
        grams = [watched(one, lambda one=one, x=x: run(one, x)) for one, x in zip(own, hidden, strict=True)]
        merged_module(own, layer, grams, alpha)
        hidden = [run(layer, one) for one in hidden]
    merged_module([one.model.norm for one in models], made.model.norm, [{}], alpha)
    last = [made.model.norm(one).double().reshape(-1, made.config.hidden_size) for one in hidden]
    grams = [{"": one.T @ one / len(one)} for one in last]
    values = [one.lm_head.weight.detach() for one in models]
    made.lm_head.weight.copy_(by_formula(values, [one[""] for one in grams], alpha))
    return dict(made.named_parameters())


@pytest.mark.long
def test_models_with_other_settings_get_a_note(tmp_path: Path) -> None:
    saved(tmp_path, llama, "a", "b")
    file = tmp_path / "b/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rms_norm_eps": 0.5}))

    def notes(**more: Any) -> list[str]:
        plan = cs.stats(tmp_path / "a", gram=True, merged_with=str(tmp_path / "b"), **more)
        return [note for note in plan.notes if "random" not in note]

    (said,) = notes()
    assert said.startswith(
        "equal weights compute different results, because the config.json files differ: rms_norm_eps"
    )
    assert notes(model=tmp_path / "a/config.json") == [
        said, f"all models ran with the settings of {tmp_path / 'a/config.json'}"
    ]  # fmt: skip


def test_statistics_of_a_merge_are_not_called_those_of_a_model_none(tmp_path: Path) -> None:
    saved(tmp_path, llama, "a", "b")
    cs.apply(cs.stats(tmp_path / "a", gram=True, merged_with=str(tmp_path / "b")), tmp_path / "s.safetensors")
    with pytest.raises(cs.ConfigError, match=r"has the statistics of a merge of models, not of .*a\."):
        cs.resize(tmp_path / "a", set={"num_hidden_layers": 1}, layers="influential", by=tmp_path / "s.safetensors")


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("alpha", [0.9, 0.6])
def test_layers_are_merged_by_what_they_see_in_the_merged_model(alpha: float, tmp_path: Path) -> None:
    models = saved(tmp_path, llama, "a", "b")
    given = {"alpha": alpha, "ridge": 0.0}
    joint(tmp_path, "a", "b", parameters=given)
    found = merged(tmp_path, "a", "b", **given)
    with torch.no_grad():
        wanted = by_the_paper(models, [ids(0), ids(1)], alpha)
    assert found.keys() == wanted.keys()
    for key, value in found.items():
        far = (value - wanted[key].detach()).abs().max() / wanted[key].detach().abs().max()
        assert float(far) <= 1e-5, key
    plain = {name: tmp_path / f"{name}.stats.safetensors" for name in "ab"}
    for name, path in plain.items():
        cs.apply(cs.stats(tmp_path / name, inputs=tmp_path / f"{name}.inputs.safetensors", gram=True), path)
    cs.apply(
        cs.merge([tmp_path / "a", tmp_path / "b"], method="regmean", statistics=plain, **given), tmp_path / "plain"
    )
    other = load_file(tmp_path / "plain/model.safetensors")
    assert not torch.allclose(other["model.layers.1.mlp.down_proj.weight"],
                              found["model.layers.1.mlp.down_proj.weight"], rtol=1e-3)  # fmt: skip


@pytest.mark.long
def test_the_order_of_the_models_makes_no_difference(tmp_path: Path) -> None:
    saved(tmp_path, llama, "a", "b")
    joint(tmp_path, "a", "b", parameters={"weight": [1, 3]})
    first = merged(tmp_path, "a", "b", weight=[1, 3])
    second = merged(tmp_path, "b", "a", weight=[3, 1])
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_padding_and_memory_and_turned_weights(tmp_path: Path) -> None:
    saved(tmp_path, gpt2, "a", "b", "c")
    mask = torch.ones(3, 10, dtype=torch.int64)
    mask[1, 6:] = 0
    found = []
    for tokens in (ids(0), torch.where(mask.bool(), ids(0), 7)):
        save_file({"input_ids": tokens, "attention_mask": mask}, tmp_path / "a.inputs.safetensors")
        found.append(load_file(joint(tmp_path, "a", "b", "c")))
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key])
    assert merged(tmp_path, "a", "b", "c").keys() >= {"transformer.h.0.attn.c_attn.weight"}
    with pytest.raises(cs.ConfigError, match="merging the largest block takes"):
        joint(tmp_path, "a", "b", memory="10KB")


@pytest.mark.long
def test_a_model_merged_with_itself_is_unchanged(tmp_path: Path) -> None:
    (model,) = saved(tmp_path, llama, "a")
    model.save_pretrained(tmp_path / "b")
    save_file({"input_ids": ids(4)}, tmp_path / "b.inputs.safetensors")
    joint(tmp_path, "a", "b")
    for key, value in merged(tmp_path, "a", "b").items():
        assert torch.equal(value, dict(model.named_parameters())[key])


def test_statistics_of_another_merge_are_an_error(tmp_path: Path) -> None:
    saved(tmp_path, llama, "a", "b", "c", gram=True)
    joint(tmp_path, "a", "b")
    with pytest.raises(cs.ConfigError, match="statistics of a merge of other models, a, b, not of .*c"):
        merged(tmp_path, "a", "c")
    with pytest.raises(cs.ConfigError, match="statistics of a merge of other models|merge of 2 models, not of 3"):
        merged(tmp_path, "a", "b", "c")
    with pytest.raises(cs.PlanError, match=r"are of a merge with alpha 0\.9, but this merge has alpha 0\.5"):
        merged(tmp_path, "a", "b", alpha=0.5)
    with pytest.raises(cs.PlanError, match=r"with weight 0\.5, but this merge has weight 0\.25"):
        merged(tmp_path, "a", "b", weight=[1, 3])
    both = [tmp_path / "a", tmp_path / "b"]
    same = dict.fromkeys("ab", tmp_path / "joint.safetensors")
    with pytest.raises(cs.ConfigError, match="in a merged model, which the method regmean does not use"):
        cs.merge(both, method="regmean", statistics=same)
    own = {name: tmp_path / f"{name}.stats.safetensors" for name in "ab"}
    with pytest.raises(cs.ConfigError, match="has no statistics of the inputs that layers get in a merged model"):
        cs.merge(both, method="regmean_plusplus", statistics=own)
    cs.merge(both, method="regmean_plusplus", statistics=same)


EDITS: dict[str, Callable[[Any], Any]] = {
    "no models": lambda merged: merged.pop("models"),
    "no list": lambda merged: merged.update(models={"a": 1}),
    "no parameters": lambda merged: merged.pop("parameters"),
    "no weights": lambda merged: merged["parameters"].update(weight=[]),
    "zeros": lambda merged: merged["parameters"].update(weight=[0, 0]),
    "text": lambda merged: merged["parameters"].update(alpha="x"),
    "no models in it": lambda merged: merged.update(models=[1, 2]),
}


@pytest.mark.costly
@pytest.mark.parametrize("edit", EDITS)
def test_edited_statistics_of_a_merge_are_an_error(edit: str, tmp_path: Path) -> None:
    saved(tmp_path, llama, "a", "b")
    file = joint(tmp_path, "a", "b")
    with cs.open_checkpoint(file) as opened:
        said = json.loads(opened.metadata["ckptsurgeon.stats"])
    EDITS[edit](said["merged"])
    save_file(load_file(file), file, {"ckptsurgeon.stats": json.dumps(said)})
    with pytest.raises(cs.ConfigError, match="statistics"):
        merged(tmp_path, "a", "b")


def test_wrong_arguments_are_an_error(tmp_path: Path, ckpt: Ckpt) -> None:
    saved(tmp_path, llama, "a", "b")
    cases = {
        "--merged-with works only with --gram": ["--merged-with", f"{tmp_path}/b"],
        "--param is only for --merged-with": ["--gram", "--param", "alpha=0.5"],
        "has no parameter beta": ["--gram", "--merged-with", f"{tmp_path}/b", "--param", "beta=1"],
        "must be the same for all": ["--gram", "--merged-with", f"{tmp_path}/b", "--param", "alpha:lm_head=0.5"],
        "does not have the form MODEL=FILE": ["--gram", "--merged-with", f"{tmp_path}/b="],
    }
    for said, more in cases.items():
        done = ckpt("stats", tmp_path / "a", *more, "-o", tmp_path / "s.safetensors")
        assert done.code == 2
        assert said in " ".join(done.err.split())
    zeros = ["--gram", "--merged-with", f"{tmp_path}/b", "--param", "weight=0,0"]
    done = ckpt("stats", tmp_path / "a", *zeros, "-o", tmp_path / "s.safetensors")
    assert done.code == 4
    assert "the weights of all models are zero" in done.err
    assert "normalize" not in done.err
    done = ckpt("stats", tmp_path / "a", "--gram", "--merged-with", f"{tmp_path}/b", "-o", tmp_path / "s.safetensors")
    assert done.code == 0, done.err


@pytest.mark.long
def test_random_inputs_of_some_of_the_models_are_said(tmp_path: Path) -> None:
    saved(tmp_path, llama, "a", "b")
    plan = cs.stats(tmp_path / "a", inputs=tmp_path / "a.inputs.safetensors", gram=True, merged_with=[f"{tmp_path}/b"])
    assert next(note for note in plan.notes if "random" in note).startswith(f"{tmp_path}/b: the inputs are random")
    cs.apply(plan, tmp_path / "joint.safetensors")
    found = cs.merge([tmp_path / "a", tmp_path / "b"], method="regmean_plusplus",
                     statistics=str(tmp_path / "joint.safetensors"))  # fmt: skip
    assert sum("the statistics are of random inputs" in note for note in found.notes) == 1


@pytest.mark.long
def test_gram_matrices_of_all_models_need_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wide(seed: int) -> Any:
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                hidden_size=16, intermediate_size=500, num_hidden_layers=2, num_attention_heads=4, vocab_size=30
            )
        ).eval()

    saved(tmp_path, wide, "a", "b")
    both = 2 * 8 * 500**2
    with pytest.raises(cs.ConfigError, match="all 2 models with its Gram matrices") as caught:
        joint(tmp_path, "a", "b", memory=both)
    enough = int(re.search(r"--memory (\d+)B", str(caught.value.hint))[1])  # type: ignore[index]
    peaks, plain = list[int](), merged_inputs._Merging._merged_tensor

    def watched_merge(self: Any, name: str) -> Any:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        made = plain(self, name)
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
        return made

    monkeypatch.setattr(merged_inputs._Merging, "_merged_tensor", watched_merge)
    tracemalloc.start()
    try:
        joint(tmp_path, "a", "b", memory=enough)
    finally:
        tracemalloc.stop()
    assert both < max(peaks) < enough
    joint(tmp_path, "a", "b", memory=both, exclude="**.down_proj.weight")


@pytest.mark.long
def test_networks_that_do_not_run_alike_are_an_error(tmp_path: Path) -> None:
    saved(tmp_path, llama, "a", "b")
    save_file({"input_ids": torch.full((1, 4), 99)}, tmp_path / "b.inputs.safetensors")
    with pytest.raises(cs.ConfigError, match="network 2 does not run"):
        joint(tmp_path, "a", "b")
    sizes = transformers.LlamaConfig(hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
                                     vocab_size=30)  # fmt: skip
    transformers.LlamaForCausalLM(sizes).save_pretrained(tmp_path / "b")
    with pytest.raises(cs.PlanError, match="have different tensors"):
        joint(tmp_path, "a", "b")


@pytest.mark.long
def test_trained_models_are_nearer_than_the_average(tmp_path: Path) -> None:
    models = trained(tmp_path)
    cs.apply(cs.merge([tmp_path / "a", tmp_path / "b"], method="linear", weights=[1, 1]), tmp_path / "mean")
    joint(tmp_path, "a", "b")
    merged(tmp_path, "a", "b")
    off, loss = measured(tmp_path, models, "mean")
    by_grams = measured(tmp_path, models, "out")
    assert by_grams[0] < 0.8 * off
    assert by_grams[1] < 0.9 * loss
