"""Merges by statistics: what ``stats`` collects is what hooks see, belongs to one model, and improves the merge."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.merge.statistics import _notes_of_few

from ...helpers.made_statistics import statistics_of
from ...helpers.nursery import run_apart

transformers = pytest.importorskip("transformers", minversion="5")

SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 30,
}  # fmt: skip
GPT2 = {"n_embd": 16, "n_head": 2, "n_layer": 2, "vocab_size": 30, "n_positions": 16}
DOWN, UP = "model.layers.1.mlp.down_proj.weight", "model.layers.0.mlp.up_proj.weight"
Ckpt = Callable[..., Any]


def llama(seed: int) -> Any:
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()


def gpt2(seed: int) -> Any:
    torch.manual_seed(seed)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).eval()


def classifier(seed: int) -> Any:
    torch.manual_seed(seed)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=30,
            num_labels=3,
        )
    ).eval()


def ids(seed: int) -> torch.Tensor:
    return torch.randint(1, 30, (3, 10), generator=torch.Generator().manual_seed(seed))


def saved(tmp_path: Path, make: Callable[[int], Any], *names: str, **more: Any) -> list[Any]:
    """Save models in folders of these names, with inputs and statistics; returns the models."""
    models = []
    for seed, name in enumerate(names):
        models.append(make(seed))
        models[-1].save_pretrained(tmp_path / name)
        save_file({"input_ids": ids(seed)}, tmp_path / f"{name}.inputs.safetensors")
        inputs = tmp_path / f"{name}.inputs.safetensors"
        if more:
            cs.apply(cs.stats(tmp_path / name, inputs=inputs, **more), tmp_path / f"{name}.stats.safetensors")
    return models


def merged(tmp_path: Path, method: str, **more: Any) -> dict[str, torch.Tensor]:
    statistics = {name: tmp_path / f"{name}.stats.safetensors" for name in ("a", "b")}
    plan = cs.merge([tmp_path / "a", tmp_path / "b"], method=method, statistics=statistics, **more)
    cs.apply(plan, tmp_path / "out", force=True)
    assert cs.verify(tmp_path / "out").ok
    return load_file(tmp_path / "out/model.safetensors")


def seen(model: Any, seed: int) -> dict[str, torch.Tensor]:
    """Return the Gram matrix of the inputs of each linear layer, as a hook of one's own finds it."""
    found: dict[str, torch.Tensor] = {}

    def look(name: str, module: Any, args: Any, out: Any) -> None:
        flat = args[0].detach().double().reshape(-1, args[0].shape[-1])
        found[f"{name}.weight"] = flat.T @ flat / len(flat)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D":
            module.register_forward_hook(lambda *given, name=name: look(name, *given))
    with torch.no_grad():
        model(ids(seed))
    return found


def by_formula(weights: list[torch.Tensor], grams: list[torch.Tensor], turned: bool) -> torch.Tensor:
    scaled = [0.9 * one + 0.1 * one.diag().diag() for one in grams]
    mine = [one.double() if turned else one.double().T for one in weights]
    made = torch.linalg.solve(sum(scaled), sum(g @ w for g, w in zip(scaled, mine, strict=True)))
    return made if turned else made.T


@pytest.mark.costly
@pytest.mark.parametrize("memory", [None, "16MiB"])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_linear_layers_are_merged_by_what_they_see(make: Any, memory: str | None, tmp_path: Path) -> None:
    models = saved(tmp_path, make, "a", "b", gram=True)
    made = merged(tmp_path, "regmean", ridge=0.0, memory=memory)
    grams, own = [seen(model, seed) for seed, model in enumerate(models)], [dict(m.named_parameters()) for m in models]
    linear = 0
    for key, value in made.items():
        wanted = (own[0][key] + own[1][key]).detach() / 2
        if key in grams[0] and (key != "lm_head.weight" or make is llama):
            linear += 1
            wanted = by_formula([one[key] for one in own], [one[key] for one in grams], make is gpt2).float()
            assert not torch.allclose(value, (own[0][key] + own[1][key]) / 2, rtol=1e-3)
        torch.testing.assert_close(value, wanted.detach(), rtol=1e-5, atol=1e-6)
    assert linear == (8 if make is gpt2 else 15)


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("make", [llama, gpt2])
def test_changes_are_scaled_by_the_magnitudes_of_inputs_of_the_base(make: Any, tmp_path: Path) -> None:
    base, *models = saved(tmp_path, make, "base", "a", "b", magnitudes=True)
    statistics = {"base": tmp_path / "base.stats.safetensors"}
    paths = [tmp_path / "a", tmp_path / "b"]
    plan = cs.merge(paths, method="aim", base=tmp_path / "base", statistics=statistics, omega=0.25, weight=[0.3, 0.5])
    cs.apply(plan, tmp_path / "out")
    assert cs.verify(tmp_path / "out").ok
    assert any("merged by task_arithmetic, without statistics (no weights of linear layers)" in n for n in plan.notes)
    means: dict[str, torch.Tensor] = {}
    for name, module in base.named_modules():
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D":
            module.register_forward_hook(
                lambda module, args, out, name=name: means.update({f"{name}.weight": args[0].abs().mean((0, 1))})
            )
    with torch.no_grad():
        base(ids(0))
    made, own = load_file(tmp_path / "out/model.safetensors"), dict(base.named_parameters())
    scaled = 0
    for key, value in made.items():
        before, first, second = (dict(one.named_parameters())[key].detach() for one in (base, *models))
        change = 0.3 * (first - before) + 0.5 * (second - before)
        if key in means and (key != "lm_head.weight" or make is llama):
            scaled += 1
            factors = 1 - 0.75 * means[key] / means[key].max()
            change = change * (factors[:, None] if make is gpt2 else factors)
        torch.testing.assert_close(value, before + change, rtol=1e-5, atol=1e-6)
    assert scaled == (8 if make is gpt2 else 15)
    assert own.keys() >= made.keys()


def test_the_result_of_another_method_is_scaled_and_what_lacks_is_said(tmp_path: Path, ckpt: Ckpt) -> None:
    saved(tmp_path, llama, "base", "a", magnitudes=True, include=["model.layers.0"])
    command = ["merge", tmp_path / "a", "-m", "aim", "--base", tmp_path / "base", "-o", tmp_path / "out"]
    done = ckpt(*command)
    assert done.code == 2
    assert "needs statistics of the base, but base has none" in " ".join(done.err.split())
    command += ["--statistics", f"base={tmp_path}/base.stats.safetensors"]
    done = ckpt(*command)
    assert done.code == 4
    assert "lack the magnitudes of inputs of 8 tensors" in " ".join(done.err.split())
    assert "missing=unscaled" in done.err
    done = ckpt(*command, "--param", "missing=unscaled")
    assert done.code == 0, done.err
    made, tuned = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "a"))
    torch.testing.assert_close(made[DOWN], tuned[DOWN])
    assert not torch.allclose(made[UP], tuned[UP], rtol=1e-2)
    other = ckpt(*command[:-1], f"a={tmp_path}/a.stats.safetensors")
    assert other.code == 2
    assert "a is not the model with statistics" in " ".join(other.err.split())


def test_gram_matrices_are_what_hooks_see_without_padding(tmp_path: Path) -> None:
    (model,) = saved(tmp_path, llama, "a")
    mask = torch.ones(3, 10, dtype=torch.int64)
    mask[1, 6:] = 0
    found = []
    for tokens in (ids(0), torch.where(mask.bool(), ids(0), 7)):
        save_file({"input_ids": tokens, "attention_mask": mask}, tmp_path / "batch.safetensors")
        plan = cs.stats(tmp_path / "a", inputs=tmp_path / "batch.safetensors", gram=True, memory="1KB")
        cs.apply(plan, tmp_path / "stats.safetensors", force=True)
        found.append(load_file(tmp_path / "stats.safetensors"))
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key])
    for key, value in seen(model, 0).items():
        assert found[0][f"{key}.gram"].shape == value.shape
    with cs.open_checkpoint(tmp_path / "stats.safetensors") as opened:
        assert '"rows": {' in opened.metadata["ckptsurgeon.stats"]
        assert f'"{DOWN}": 26' in opened.metadata["ckptsurgeon.stats"]


def gradients(model: Any, seed: int) -> dict[str, torch.Tensor]:
    """Return the mean of squared gradients of the loss of the next token, one example at a time."""
    total: dict[str, torch.Tensor] = {}
    for row in ids(seed):
        model.zero_grad()
        logits = model(row[None]).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, row[1:]).backward()
        for name, one in model.named_parameters():
            total[name] = total.get(name, 0) + one.grad.double() ** 2 / 3
    return total


@pytest.mark.costly
@pytest.mark.parametrize("make", [llama, gpt2])
def test_elements_are_merged_by_their_fisher_information(make: Any, tmp_path: Path) -> None:
    models = saved(tmp_path, make, "a", "b", fisher=True)
    found = [gradients(model, seed) for seed, model in enumerate(models)]
    file = load_file(tmp_path / "a.stats.safetensors")
    made = merged(tmp_path, "fisher", weight=[1.0, 0.5], floor=0.0)
    own = [dict(model.named_parameters()) for model in models]
    for key, value in made.items():
        torch.testing.assert_close(file[f"{key}.fisher"].double(), found[0][key], rtol=1e-3, atol=1e-12)
        shares = [found[0][key], 0.5 * found[1][key]]
        known = sum(shares) > 1e-12
        wanted = sum(a * b[key] for a, b in zip(shares, own, strict=True)) / sum(shares)
        torch.testing.assert_close(value.double()[known], wanted.detach()[known], rtol=1e-3, atol=1e-5)
        assert known.double().mean() > 0.02
    notes = cs.stats(tmp_path / "a", inputs=tmp_path / "a.inputs.safetensors", fisher=True).notes
    assert any("Fisher information of 3 examples: the model's own loss for the next token" in note for note in notes)


@pytest.mark.long
def test_labels_are_drawn_from_the_models_own_prediction(tmp_path: Path) -> None:
    (model,) = saved(tmp_path, classifier, "a")
    inputs, key = tmp_path / "a.inputs.safetensors", "classifier.weight"
    found = []
    for seed in range(20):
        plan = cs.stats(tmp_path / "a", inputs=inputs, fisher=True, include=["classifier"], seed=seed)
        cs.apply(plan, tmp_path / "stats.safetensors", force=True)
        found.append(load_file(tmp_path / "stats.safetensors")[f"{key}.fisher"])
    assert any("labels drawn from the model's own prediction with seed 19" in note for note in plan.notes)
    wanted = torch.zeros(3, 16)
    for row in ids(0):  # the expectation over the three labels
        logits = model(row[None]).logits[0].log_softmax(-1)
        for label in range(3):
            (gradient,) = torch.autograd.grad(-logits[label], model.classifier.weight, retain_graph=True)
            wanted += logits[label].exp().detach() * gradient**2 / 3
    torch.testing.assert_close(torch.stack(found).mean(0), wanted, rtol=0.35, atol=1e-3)
    save_file({"input_ids": ids(0), "labels": torch.tensor([0, 1, 2])}, tmp_path / "labelled.safetensors")
    plan = cs.stats(tmp_path / "a", inputs=tmp_path / "labelled.safetensors", fisher=True)
    assert any("for the labels in the inputs" in note for note in plan.notes)


def test_fisher_information_has_its_memory(tmp_path: Path, ckpt: Ckpt) -> None:
    saved(tmp_path, llama, "a")
    inputs = tmp_path / "a.inputs.safetensors"
    done = ckpt("stats", tmp_path / "a", "--inputs", inputs, "--fisher", "--memory", "50KB", "-o", tmp_path / "s.pt")
    assert done.code == 2
    assert "Fisher information takes" in done.err
    assert "--memory" in done.err
    assert "choose tensors with --include" in done.err
    done = ckpt("stats", tmp_path / "a", "--inputs", inputs, "--fisher", "--memory", "10KB", "-o", tmp_path / "s.pt")
    assert (done.code, "--include" in done.err) == (2, False)  # the weights alone need more
    cs.stats(tmp_path / "a", inputs=inputs, fisher=True, include="model.norm", memory="60KB")


def test_statistics_of_another_model_are_an_error_that_names_both(tmp_path: Path) -> None:
    models = saved(tmp_path, llama, "a", "b", gram=True)
    swapped = {"a": tmp_path / "b.stats.safetensors", "b": tmp_path / "a.stats.safetensors"}
    with pytest.raises(cs.ConfigError, match="statistics of another model, b, not of .*a") as caught:
        cs.merge([tmp_path / "a", tmp_path / "b"], method="regmean", statistics=swapped)
    assert str(caught.value.hint).endswith(f"ckpt stats {tmp_path}/a --inputs FILE --gram -o NEW_FILE.")
    with torch.no_grad():
        models[0].model.layers[0].self_attn.q_proj.weight.mul_(1.5)
    models[0].save_pretrained(tmp_path / "a")
    with pytest.raises(cs.ConfigError, match="statistics of another model"):
        merged(tmp_path, "regmean")


def test_a_model_that_differs_only_far_from_its_end_is_another_one(tmp_path: Path) -> None:
    """Headers, and the last 64 kB, are the same; a change of some hundred bytes may be missed, one of a matrix not."""

    def make(seed: int) -> Any:
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, "vocab_size": 4000})).eval()

    saved(tmp_path, make, "a", "b", gram=True, include=["model.layers"])
    statistics = {name: tmp_path / f"{name}.stats.safetensors" for name in ("a", "b")}
    cs.merge([tmp_path / "a", tmp_path / "b"], method="regmean", missing="average", statistics=statistics)
    weights = load_file(tmp_path / "a/model.safetensors")
    weights["lm_head.weight"][100:200] *= 1.5
    save_file(weights, tmp_path / "a/model.safetensors", {"format": "pt"})
    with pytest.raises(cs.ConfigError, match="statistics of another model"):
        cs.merge([tmp_path / "a", tmp_path / "b"], method="regmean", missing="average", statistics=statistics)


def test_tensors_whose_statistics_were_not_collected_are_an_error(tmp_path: Path) -> None:
    saved(tmp_path, llama, "a", "b", gram=True, exclude=["**.mlp"])
    with pytest.raises(cs.PlanError, match=r"lack the Gram matrix of 6 tensors: .*down_proj") as raised:
        merged(tmp_path, "regmean")
    assert "missing=average" in raised.value.hint
    made = merged(tmp_path, "regmean", missing={"**.mlp": "average"})
    own = [load_file(tmp_path / f"{name}/model.safetensors")[DOWN] for name in "ab"]
    torch.testing.assert_close(made[DOWN], (own[0] + own[1]) / 2)
    plan = cs.merge(
        [tmp_path / "a", tmp_path / "b"], method="regmean", missing="average",
        statistics=[f"{tmp_path}/{name}={tmp_path}/{name}.stats.safetensors" for name in "ab"],
    )  # fmt: skip
    assert any("ridge adds 1e-06 times the mean of the diagonal" in one for one in plan.notes)
    assert any(
        "6 tensors averaged without statistics (Gram matrix not collected, missing=average)" in one
        for one in plan.notes
    )
    assert any("(no weights of linear layers)" in one and "norm" in one for one in plan.notes)


def test_inputs_that_are_not_finite_are_an_error_that_names_the_module(tmp_path: Path) -> None:
    (model,) = saved(tmp_path, llama, "a")
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[3] = torch.nan
    model.save_pretrained(tmp_path / "a")
    with pytest.raises(cs.ConfigError, match=r"inputs of the module model\.layers\.0\.self_attn\.q_proj"):
        cs.stats(tmp_path / "a", inputs=tmp_path / "a.inputs.safetensors", gram=True)
    with pytest.raises(cs.ConfigError, match="for example 1 of the inputs are NaN or infinite") as caught:
        cs.stats(tmp_path / "a", inputs=tmp_path / "a.inputs.safetensors", fisher=True)
    assert caught.value.hint.startswith("Look for damaged weights with ckpt check")


def test_a_text_of_one_token_has_no_loss(tmp_path: Path) -> None:
    """The mean loss of no tokens is NaN, although the outputs are finite."""
    saved(tmp_path, llama, "a")
    save_file({"input_ids": torch.zeros(1, 1, dtype=torch.long)}, tmp_path / "short.safetensors")
    with pytest.raises(cs.ConfigError, match="a has no finite loss for example 1") as caught:
        cs.stats(tmp_path / "a", inputs=tmp_path / "short.safetensors", fisher=True)
    assert caught.value.hint.startswith("Give longer texts")


CASES = {
    "no statistics": ("regmean", {}, "needs statistics of each model, but a, b have none"),
    "no merged": (
        "regmean_plusplus",
        {},
        "ckpt stats a --inputs FILE --gram --merged-with b=FILE -o stats.safetensors",
    ),
    "of one": ("regmean", {"a": "a"}, "but b has none"),
    "no such model": ("regmean", {"a": "a", "c": "b"}, "c is not one of the models"),
    "no use": ("linear", {"a": "a"}, "no effect: the method linear uses no statistics"),
    "no Fisher": ("fisher", {"a": "a", "b": "b"}, "has no Fisher information of any tensor"),
    "inputs": ("regmean", {"a": "a", "b": "inputs"}, "has no statistics"),
}


@pytest.mark.costly
@pytest.mark.parametrize("case", CASES)
def test_wrong_statistics_are_an_error(case: str, tmp_path: Path, ckpt: Ckpt) -> None:
    saved(tmp_path, llama, "a", "b", gram=True)
    (tmp_path / "inputs.stats.safetensors").write_bytes((tmp_path / "a.inputs.safetensors").read_bytes())
    method, given, said = CASES[case]
    more = [f"--statistics={model}={tmp_path}/{name}.stats.safetensors" for model, name in given.items()]
    weights = ["--weights", "1,1"] if method == "linear" else []
    done = ckpt("merge", tmp_path / "a", tmp_path / "b", "-m", method, *weights, *more, "-o", tmp_path / "out")
    assert done.code == 2, done.err
    assert said in " ".join(done.err.split())


@pytest.mark.long
def test_a_merge_that_inputs_do_not_determine_is_said(tmp_path: Path) -> None:
    saved(tmp_path, llama, "a", "b")
    for seed, name in enumerate("ab"):
        save_file({"input_ids": ids(seed)[:1, :5]}, tmp_path / f"{name}.inputs.safetensors")
        plan = cs.stats(tmp_path / name, inputs=tmp_path / f"{name}.inputs.safetensors", gram=True)
        cs.apply(plan, tmp_path / f"{name}.stats.safetensors")
    models, statistics = [tmp_path / "a", tmp_path / "b"], {n: tmp_path / f"{n}.stats.safetensors" for n in "ab"}
    for given, number in (({"alpha": 1.0, "ridge": 0.0}, 1), ({"alpha": 1.0}, 0), ({"ridge": 0.0}, 0)):
        notes = cs.merge(models, method="regmean", statistics=statistics, **given).notes
        found = [one for one in notes if "15 tensors may not be determined by so few inputs" in one]
        assert len(found) == number, given
        assert all("--param ridge=1e-6 gives the mean" in one for one in found)


def test_inputs_that_are_repeated_have_a_gram_matrix_without_inverse(tmp_path: Path) -> None:
    """Rounded to float32, it has one, but of rounding errors."""
    saved(tmp_path, llama, "a", "b")
    for seed, name in enumerate("ab"):
        save_file({"input_ids": ids(seed)[:1, :5].repeat(20, 1)}, tmp_path / f"{name}.inputs.safetensors")
        plan = cs.stats(tmp_path / name, inputs=tmp_path / f"{name}.inputs.safetensors", gram=True)
        cs.apply(plan, tmp_path / f"{name}.stats.safetensors")
    models, statistics = [tmp_path / "a", tmp_path / "b"], {n: tmp_path / f"{n}.stats.safetensors" for n in "ab"}
    plan = cs.merge(models, method="regmean", statistics=statistics, alpha=1.0, ridge=0.0)
    with pytest.raises(cs.PlanError, match="cannot be inverted: the inputs do not reach all directions") as raised:
        cs.apply(plan, tmp_path / "out")
    assert "--param ridge=1e-6" in raised.value.hint
    assert not (tmp_path / "out").exists()
    cs.apply(cs.merge(models, method="regmean", statistics=statistics, ridge=0.0), tmp_path / "out")


def with_edited(tmp_path: Path, name: str, gram: torch.Tensor | None = None, rows: int | None = None) -> None:
    """Change the Gram matrix of ``DOWN`` in a file of statistics, or the number of its inputs."""
    file = tmp_path / f"{name}.stats.safetensors"
    with cs.open_checkpoint(file) as opened:
        said = json.loads(opened.metadata["ckptsurgeon.stats"])
    if rows is not None:
        said["gram"]["rows"][DOWN] = rows
    values = load_file(file)
    values[f"{DOWN}.gram"] = values[f"{DOWN}.gram"] if gram is None else gram
    save_file(values, file, {"ckptsurgeon.stats": json.dumps(said)})


@pytest.mark.long
def test_values_that_grow_are_said_with_a_larger_ridge(tmp_path: Path) -> None:
    """The inputs of both models have nearly the same direction: its inverse multiplies the models' difference."""
    saved(tmp_path, llama, "a", "b", gram=True)
    for name, angle in (("a", 0.0), ("b", 0.01)):
        gram, main = torch.eye(24), torch.tensor([math.cos(angle), math.sin(angle)])
        gram[:2, :2] = torch.outer(main, main)
        with_edited(tmp_path, name, gram)
    models, statistics = [tmp_path / "a", tmp_path / "b"], {n: tmp_path / f"{n}.stats.safetensors" for n in "ab"}
    for ridge, larger in ((1e-8, "0.01"), (1.0, "")):
        plan = cs.merge(models, method="regmean", statistics=statistics, alpha=1.0, ridge=ridge)
        notes = cs.apply(plan, tmp_path / "out", force=True).notes
        found = [one for one in notes if "values over 4 times as large as the largest of all inputs" in one]
        assert len(found) == bool(larger), (ridge, notes)
        assert all(f"(--param ridge={larger})" in one and DOWN in one for one in found)


@pytest.mark.long
def test_weights_without_inputs_are_counted_apart(tmp_path: Path) -> None:
    saved(tmp_path, llama, "a", "b", gram=True)
    with_edited(tmp_path, "a", torch.zeros(24, 24), rows=0)
    models, statistics = [tmp_path / "a", tmp_path / "b"], {n: tmp_path / f"{n}.stats.safetensors" for n in "ab"}
    notes = cs.merge(models, method="regmean", statistics=statistics).notes
    assert any("1 tensor got no input: the inputs of the other models decide" in one and DOWN in one for one in notes)
    assert not any("fewer inputs than" in one and DOWN in one for one in notes)
    keys = [f"m.experts.{expert}.{part}.weight" for expert in range(3) for part in ("up", "down")]
    (note,) = _notes_of_few([], set(keys), "x")
    assert note.startswith("x: 3 experts got no input: ")


@pytest.mark.long
def test_edited_statistics_are_an_error(tmp_path: Path) -> None:
    saved(tmp_path, llama, "a", "b", gram=True)
    file = tmp_path / "a.stats.safetensors"
    with cs.open_checkpoint(file) as opened:
        note = opened.metadata["ckptsurgeon.stats"]
    values = load_file(file)
    save_file({**values, f"{DOWN}.gram": torch.eye(5)}, file, {"ckptsurgeon.stats": note})
    with pytest.raises(cs.PlanError, match=r"are 5 x 5|\(5, 5\)|5×5"):
        merged(tmp_path, "regmean")
    save_file({**values, f"{DOWN}.gram": -values[f"{DOWN}.gram"]}, file, {"ckptsurgeon.stats": note})
    with pytest.raises(cs.PlanError, match="Gram matrix of model 1 has negative values on its diagonal"):
        merged(tmp_path, "regmean")
    for row, column, by, massive in ((3, 5, 0.1, 1), (0, 23, -0.1, 1), (3, 5, 0.1, 1e3)):
        uneven = values[f"{DOWN}.gram"].clone()
        uneven[7] *= massive  # a channel with much larger values than the others, as language models have
        uneven[:, 7] *= massive
        uneven[row, column] += by * (uneven[row, row] * uneven[column, column]) ** 0.5
        save_file({**values, f"{DOWN}.gram": uneven}, file, {"ckptsurgeon.stats": note})
        with pytest.raises(cs.PlanError, match=f"{DOWN}.*Gram matrix of model 1 is not symmetric"):
            merged(tmp_path, "regmean")
    large = values[f"{DOWN}.gram"].clone()
    large[3, 5] = large[5, 3] = 1.1 * (large[3, 3] * large[5, 5]) ** 0.5
    save_file({**values, f"{DOWN}.gram": large}, file, {"ckptsurgeon.stats": note})
    with pytest.raises(cs.PlanError, match="elements that are larger than the diagonal allows"):
        merged(tmp_path, "regmean")
    save_file({**values, f"{DOWN}.gram": torch.full((24, 24), torch.nan)}, file, {"ckptsurgeon.stats": note})
    with pytest.raises(cs.PlanError, match=f"{DOWN}.*Gram matrix of model 1 has values that are not finite"):
        merged(tmp_path, "regmean")


RECIPE = """\
models:
  - {model: ../a, statistics: ../a.stats.safetensors}
  - {model: ../b, statistics: ../b.stats.safetensors}
merge_method: regmean
parameters: {alpha: 0.5}
"""
OWN = """\
verb: merge
models: [../a, ../b]
method: regmean
parameters: {alpha: 0.5}
statistics: {a: ../a.stats.safetensors, b: ../b.stats.safetensors}
output: ../own/
"""


def test_recipes_have_statistics(tmp_path: Path, ckpt: Ckpt) -> None:
    saved(tmp_path, llama, "a", "b", gram=True)
    made = merged(tmp_path, "regmean", alpha=0.5)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/mergekit.yaml").write_text(RECIPE)
    (tmp_path / "recipes/own.yaml").write_text(OWN)
    assert ckpt("merge", tmp_path / "recipes/mergekit.yaml", "-o", tmp_path / "kit").code == 0
    assert ckpt("apply", tmp_path / "recipes/own.yaml").code == 0
    for name in ("kit", "own"):
        assert cs.verify(tmp_path / name).ok
        for key, value in load_file(tmp_path / name / "model.safetensors").items():
            assert torch.equal(value, made[key])


@pytest.mark.long
def test_a_plan_in_a_file_has_statistics(tmp_path: Path, ckpt: Ckpt) -> None:
    saved(tmp_path, llama, "a", "b", gram=True, fisher=True)
    for method in ("regmean", "fisher"):
        made = merged(tmp_path, method)
        given = [f"--statistics={name}={tmp_path}/{name}.stats.safetensors" for name in "ab"]
        done = ckpt("merge", tmp_path / "a", tmp_path / "b", "-m", method, *given, "-n", "--json")
        (tmp_path / "plan.json").write_text(done.out)
        cs.apply(tmp_path / "plan.json", tmp_path / "planned", force=True)
        for key, value in load_file(tmp_path / "planned/model.safetensors").items():
            assert torch.equal(value, made[key])


@pytest.mark.long
def test_statistics_for_merges_leave_those_for_resizing(tmp_path: Path) -> None:
    saved(tmp_path, llama, "a", gram=True, fisher=True)
    both = load_file(tmp_path / "a.stats.safetensors")
    cs.apply(cs.stats(tmp_path / "a", inputs=tmp_path / "a.inputs.safetensors"), tmp_path / "plain.safetensors")
    for key, value in load_file(tmp_path / "plain.safetensors").items():
        assert torch.equal(value, both[key])
    plan = cs.resize(tmp_path / "a", set={"intermediate_size": 10}, by=tmp_path / "a.stats.safetensors")
    assert "contribute most according to a.stats.safetensors" in plan.notes[0]


@pytest.mark.long
def test_a_model_that_is_there_twice_has_one_file(tmp_path: Path) -> None:
    saved(tmp_path, llama, "a", "b", gram=True)
    statistics = {name: tmp_path / f"{name}.stats.safetensors" for name in ("a", "b")}
    models = [tmp_path / "a", tmp_path / "a", tmp_path / "b"]
    cs.apply(cs.merge(models, method="regmean", statistics=statistics), tmp_path / "twice")
    made = merged(tmp_path, "regmean", weight=[2, 1])
    for key, value in load_file(tmp_path / "twice/model.safetensors").items():
        torch.testing.assert_close(value, made[key])
    weights = [load_file(tmp_path / f"{name}/model.safetensors") for name in "ab"]
    with pytest.raises(cs.ConfigError, match="is in memory"):
        cs.merge(weights, method="regmean", statistics={"<dict>": statistics["a"], "<dict> (2)": statistics["b"]})


@pytest.mark.long
def test_quantised_models_are_merged_by_what_their_decoded_weights_do(tmp_path: Path) -> None:
    SIZES.update(hidden_size=32, intermediate_size=64)
    try:
        saved(tmp_path, llama, "a", "b")
    finally:
        SIZES.update(hidden_size=16, intermediate_size=24)
    for name in ("a", "b"):
        cs.apply(cs.convert(tmp_path / name, quantize="fp8-channel"), tmp_path / f"q{name}")
        plan = cs.stats(tmp_path / f"q{name}", inputs=tmp_path / f"{name}.inputs.safetensors", gram=True)
        cs.apply(plan, tmp_path / f"{name}.stats.safetensors")
    statistics = {f"q{name}": tmp_path / f"{name}.stats.safetensors" for name in "ab"}
    made = []
    for encoding in ("keep", "dequantize"):
        plan = cs.merge([tmp_path / "qa", tmp_path / "qb"], method="regmean", statistics=statistics, encoding=encoding)
        cs.apply(plan, tmp_path / encoding)
        assert cs.verify(tmp_path / encoding).ok
        plain: dict[str, Any] = {"dequantize": True} if encoding == "keep" else {}
        cs.apply(cs.convert(tmp_path / encoding, dtype="float32", **plain), tmp_path / f"{encoding}.safetensors")
        made.append(load_file(tmp_path / f"{encoding}.safetensors")[DOWN])
    torch.testing.assert_close(made[0], made[1], rtol=0.1, atol=1e-3)


@pytest.mark.long
def test_rows_that_differ_are_averaged(tmp_path: Path) -> None:
    saved(tmp_path, llama, "a", gram=True)
    SIZES.update(vocab_size=40)
    try:
        saved(tmp_path, llama, "b", gram=True)
    finally:
        SIZES.update(vocab_size=30)
    statistics = {name: tmp_path / f"{name}.stats.safetensors" for name in ("a", "b")}
    models = [tmp_path / "a", tmp_path / "b"]
    plan = cs.merge(models, method="regmean", statistics=statistics, on_mismatch="slice")
    assert any("(rows or sizes differ between the models): lm_head.weight" in note for note in plan.notes)


def test_layers_of_a_recipe_have_the_statistics_of_their_layer(tmp_path: Path) -> None:
    models = saved(tmp_path, llama, "a", "b", gram=True)
    sources = [
        f"{{model: {tmp_path}/{name}, layer_range: [{first}, {first + 1}], statistics: {tmp_path}/{name}.stats.safetensors}}"
        for name, first in (("a", 0), ("b", 1))
    ]
    (tmp_path / "r.yaml").write_text(
        f"merge_method: regmean\nslices: [{{sources: [{', '.join(sources)}]}}]\nparameters: {{ridge: 0}}"
    )
    cs.apply(cs.merge(tmp_path / "r.yaml"), tmp_path / "out")
    grams = [seen(model, seed) for seed, model in enumerate(models)]
    keys = [f"model.layers.{number}.mlp.up_proj.weight" for number in (0, 1)]
    own = [model.state_dict()[key] for model, key in zip(models, keys, strict=True)]
    wanted = by_formula(own, [one[key] for one, key in zip(grams, keys, strict=True)], False).float()
    torch.testing.assert_close(load_file(tmp_path / "out/model.safetensors")[UP], wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(cs.ConfigError, match="both statistics and the recipe name files with statistics"):
        cs.merge(tmp_path / "r.yaml", statistics={"a": "x"})


@pytest.mark.parametrize("kind", ["gram", "magnitudes"])
def test_statistics_of_no_linear_layer_are_an_error(kind: str, tmp_path: Path) -> None:
    saved(tmp_path, llama, "a")
    with pytest.raises(cs.ConfigError, match=f"{kind}=True: with these inputs, none of the chosen linear layers runs"):
        cs.stats(tmp_path / "a", include="**.norm.weight", **{kind: True})  # type: ignore[arg-type]


@pytest.mark.long
def test_random_inputs_are_said_when_statistics_are_made_and_used(tmp_path: Path) -> None:
    saved(tmp_path, llama, "a", "b", gram=True)
    plan = cs.stats(tmp_path / "a", gram=True)
    assert any(note.startswith("the inputs are random") for note in plan.notes)
    cs.apply(plan, tmp_path / "random.safetensors")
    files = {"a": tmp_path / "random.safetensors", "b": tmp_path / "b.stats.safetensors"}
    notes = cs.merge([tmp_path / "a", tmp_path / "b"], method="regmean", statistics=files).notes
    assert next(note for note in notes if "of random inputs" in note).startswith("random.safetensors: ")
    sizes = {"intermediate_size": 20}
    for name, is_said in (("random.safetensors", True), ("a.stats.safetensors", False)):
        notes = cs.resize(tmp_path / "a", set=sizes, by=tmp_path / name).notes
        assert any("of random inputs" in note for note in notes) == is_said
    with pytest.raises(cs.ConfigError, match="inputs is empty"):
        cs.stats(tmp_path / "a", inputs="")


def test_patterns_without_gram_or_fisher_are_an_error(tmp_path: Path, ckpt: Ckpt) -> None:
    saved(tmp_path, llama, "a")
    done = ckpt("stats", tmp_path / "a", "--include", "lm_head", "-o", tmp_path / "s.safetensors")
    assert done.code == 2
    assert "but none of them is given" in done.err
    done = ckpt("stats", tmp_path / "a", "--gram", "--include", "lm_haed", "-o", tmp_path / "s.safetensors")
    assert done.code == 2
    assert "lm_head" in done.err


# Memory, threads and dtypes, with statistics that no network made.

MERGE = """
import json
import sys
import ckptsurgeon as cs
method, output, statistics = sys.argv[1:]
cs.apply(cs.merge(["a.safetensors", "b.safetensors"], method=method, statistics=json.loads(statistics)), output)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
FILES = ["a.safetensors", "b.safetensors"]


def made(shape: tuple[int, int], dtype: torch.dtype = torch.float32, *, turned: bool = False) -> dict[str, str]:
    for seed, name in enumerate(FILES):
        torch.manual_seed(seed)
        save_file({"w": torch.randn(shape).to(dtype), "v": torch.randn(9).to(dtype), "n": torch.tensor(seed)}, name)
    return statistics_of(FILES, turned=turned)


def merged_apart(method: str, output: str, statistics: dict[str, str]) -> int:
    """Merge in a small process of its own, with one thread, and return its most memory in bytes."""
    done = run_apart(MERGE, method, output, json.dumps(statistics))
    assert not done.returncode, done.stderr
    return int(done.stdout) << 10


EDITS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a statistic less": (lambda step: step["more"].pop(), "cannot make the tensor w"),
    "no models": (lambda step: step.update(more=[]), "cannot make the tensor w"),
    "of rows": (lambda step: step["merge"].update(statistics="gram of rows"), "cannot make the tensor w"),
    "of elements": (lambda step: step["merge"].update(statistics="fisher"), "cannot make the tensor w"),
    "unknown": (lambda step: step["merge"].update(statistics="x"), "the plan is malformed|are not statistics"),
    "none": (lambda step: step["merge"].pop("statistics"), "cannot make the tensor w"),
    "another method": (lambda step: step["merge"].update(method="linear", parameters={"weight": [1, 1], "normalize": True}),
                       "has gram statistics, but the merge method linear uses none"),
    "a base": (lambda step: step["merge"].update(base=True), "cannot make the tensor w"),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_edited_plans_are_an_error(edit: str) -> None:
    plan = cs.merge(FILES, method="regmean", statistics=made((6, 4))).to_json()
    change, said = EDITS[edit]
    change(next(step for step in plan["steps"] if step["key"] == "w"))
    Path("plan.json").write_text(json.dumps(plan))
    with pytest.raises(cs.CheckpointError, match=said):
        cs.apply("plan.json", "out.safetensors")
    assert not Path("out.safetensors").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("shape", "turned"), [((1000, 1000), False), ((1000, 1000), True), ((400, 1600), False), ((1600, 400), True)]
)
def test_no_more_memory_is_taken_than_is_said(shape: tuple[int, int], turned: bool) -> None:
    before = merged_apart("regmean", "small.safetensors", made((8, 8), turned=turned))
    statistics = made(shape, turned=turned)
    costs = cs.merge(FILES, method="regmean", statistics=statistics).costs
    assert costs is not None
    taken = merged_apart("regmean", "out.safetensors", statistics) - before
    assert (
        0.1 * costs.memory_nbytes < taken < costs.memory_nbytes + (20 << 20)
    )  # LAPACK has copies and buffers of its own
    with pytest.raises(cs.PlanError, match="w: computing this tensor takes .* whole matrices"):
        cs.merge(FILES, method="regmean", statistics=statistics, memory=20_000_000)


@pytest.mark.costly
@pytest.mark.parametrize("turned", [False, True])
def test_the_number_of_threads_makes_no_difference(turned: bool) -> None:
    statistics = made((300, 400), torch.float64, turned=turned)
    merged_apart("regmean", "1.safetensors", statistics)
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}  # which are read at import
    command = [sys.executable, "-c", MERGE, "regmean", "2.safetensors", json.dumps(statistics)]
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert torch.equal(*(load_file(f"{threads}.safetensors")["w"] for threads in (1, 2)))


@pytest.mark.parametrize("method", ["regmean", "fisher"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_all_dtypes_are_merged_and_verified(method: str, dtype: torch.dtype) -> None:
    statistics = made((30, 20), dtype)
    cs.apply(cs.merge(FILES, method=method, statistics=statistics), "out.safetensors")
    found, own = load_file("out.safetensors"), [load_file(name) for name in FILES]
    by = [load_file(statistics[name]) for name in FILES]
    if method == "regmean":
        wanted = by_formula([one["w"] for one in own], [one["w.gram"].double() for one in by], False)
    else:
        shares = [one["w.fisher"].double() for one in by]
        wanted = sum(a * b["w"].double() for a, b in zip(shares, own, strict=True)) / sum(shares)
    assert found["w"].dtype == dtype
    torch.testing.assert_close(found["w"], wanted.to(dtype), rtol=1e-2 if dtype.itemsize == 2 else 1e-4, atol=1e-4)
    assert cs.verify("out.safetensors").ok
    Path(statistics["a.safetensors"]).unlink()
    assert "w" in cs.verify("out.safetensors").not_compared


# Does it help? Two models that were trained on different tokens, from one base.


def trained(tmp_path: Path) -> list[Any]:
    models = []
    for number, name in enumerate(("a", "b")):
        model = llama(0).train()
        chance = torch.Generator().manual_seed(number)
        first = 1 + 15 * number
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        for _ in range(60):
            start = torch.randint(0, 14, (8, 1), generator=chance)
            tokens = first + (start + torch.arange(10) * (number + 1)) % 14  # counts in steps of one, or of two
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval().save_pretrained(tmp_path / name)
        save_file({"input_ids": tokens}, tmp_path / f"{name}.inputs.safetensors")
        plan = cs.stats(tmp_path / name, inputs=tmp_path / f"{name}.inputs.safetensors", gram=True, fisher=True)
        cs.apply(plan, tmp_path / f"{name}.stats.safetensors")
        models.append((model, tokens))
    return models


def measured(tmp_path: Path, models: list[Any], folder: str) -> tuple[float, float]:
    """Return how far a merge's outputs are from those of each model on this model's inputs, and its loss there."""
    made = transformers.LlamaForCausalLM.from_pretrained(tmp_path / folder).eval()
    with torch.no_grad():
        off = [float((made(x).logits - one(x).logits).square().mean()) for one, x in models]
        return sum(off), sum(float(made(input_ids=x, labels=x).loss) for _, x in models)


@pytest.mark.long
def test_merges_by_statistics_of_trained_models_are_nearer_to_them_than_the_average(tmp_path: Path) -> None:
    models = trained(tmp_path)
    cs.apply(cs.merge([tmp_path / "a", tmp_path / "b"], method="linear", weights=[1, 1]), tmp_path / "mean")
    off, loss = measured(tmp_path, models, "mean")
    merged(tmp_path, "regmean")
    by_grams = measured(tmp_path, models, "out")
    assert by_grams[0] < 0.8 * off
    assert by_grams[1] < 0.9 * loss
    merged(tmp_path, "fisher")
    assert measured(tmp_path, models, "out")[1] < 0.7 * loss  # it keeps what matters to the loss, not to all outputs
