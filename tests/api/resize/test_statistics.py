"""Statistics are what hooks of one's own see, belong to one model, and decide what is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

transformers = pytest.importorskip("transformers", minversion="5")

SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 30,
}  # fmt: skip
IDS = torch.arange(20).reshape(2, 10)


@pytest.fixture
def llama(tmp_path: Path) -> Any:
    """Return a small Llama, saved in the folder ``llama``; the inputs are in batch.safetensors."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    model.save_pretrained(tmp_path / "llama")
    save_file({"input_ids": IDS}, tmp_path / "batch.safetensors")
    return model.eval()


def made(tmp_path: Path, **more: Any) -> dict[str, torch.Tensor]:
    inputs = tmp_path / "batch.safetensors"
    cs.apply(cs.stats(tmp_path / "llama", inputs=inputs, **more), tmp_path / "stats.safetensors", force=True)
    return load_file(tmp_path / "stats.safetensors")


def seen(model: Any) -> dict[str, torch.Tensor]:
    """Return the inputs of each linear layer, and inputs and outputs of each layer."""
    found: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, args, out, name=name: found.update({name: args[0]}))
    for name, layer in model.model.layers.named_children():
        layer.register_forward_hook(
            lambda _, args, out, name=name: found.update({f"{name} in": args[0], f"{name} out": out})
        )
    with torch.no_grad():
        model(IDS)
    return found


@pytest.mark.parametrize("memory", [None, "1KB"])
def test_statistics_are_what_hooks_see(llama: Any, tmp_path: Path, memory: str | None) -> None:
    values, own = made(tmp_path, memory=memory), seen(llama)
    for name in ("model.layers.1.mlp.down_proj", "model.layers.2.self_attn.o_proj", "lm_head"):
        expected = own[name].reshape(20, -1).square().mean(0)
        torch.testing.assert_close(values[f"{name}.inputs"], expected)
    for layer in range(3):
        before, after = own[f"{layer} in"], own[f"{layer} out"]
        expected = 1 - torch.cosine_similarity(before, after, dim=-1).mean()
        torch.testing.assert_close(values[f"model.layers.{layer}.influence"], expected, rtol=1e-4, atol=1e-6)


def test_channels_are_kept_that_contribute_most(llama: Any, tmp_path: Path) -> None:
    values, weights = made(tmp_path), load_file(tmp_path / "llama/model.safetensors")
    plan = cs.resize(tmp_path / "llama", set={"intermediate_size": 10}, by=tmp_path / "stats.safetensors")
    assert plan.notes[0].startswith(
        "intermediate_size 24 to 10: those that contribute most in stats.safetensors are kept"
    )
    cs.apply(plan, tmp_path / "out")
    after = load_file(tmp_path / "out/model.safetensors")
    for layer in range(3):
        down = weights[f"model.layers.{layer}.mlp.down_proj.weight"]
        scores = values[f"model.layers.{layer}.mlp.down_proj.inputs"] * down.square().sum(0)
        kept = scores.topk(10).indices.sort().values
        assert torch.equal(after[f"model.layers.{layer}.mlp.down_proj.weight"], down[:, kept])
        up = weights[f"model.layers.{layer}.mlp.up_proj.weight"]
        assert torch.equal(after[f"model.layers.{layer}.mlp.up_proj.weight"], up[kept])


def test_layers_are_kept_that_change_their_input_most(llama: Any, tmp_path: Path) -> None:
    with torch.no_grad():
        layer = llama.model.layers[1]  # it adds almost nothing to its input
        layer.self_attn.o_proj.weight.mul_(1e-3)
        layer.mlp.down_proj.weight.mul_(1e-3)
    llama.save_pretrained(tmp_path / "llama")
    values = made(tmp_path)
    assert values["model.layers.1.influence"] < 1e-4 < values["model.layers.0.influence"]
    weights = load_file(tmp_path / "llama/model.safetensors")
    arguments: dict[str, Any] = {"set": {"num_hidden_layers": 2}, "layers": "influential"}
    with pytest.raises(cs.ConfigError, match="needs statistics"):
        cs.resize(tmp_path / "llama", **arguments)
    cs.apply(cs.resize(tmp_path / "llama", **arguments, by=tmp_path / "stats.safetensors"), tmp_path / "out")
    after = load_file(tmp_path / "out/model.safetensors")
    key = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(after[key.format(0)], weights[key.format(0)])
    assert torch.equal(after[key.format(1)], weights[key.format(2)])


def test_experts_are_kept_that_are_used_most(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SIZES, num_local_experts=6, num_experts_per_tok=2)
    model = transformers.MixtralForCausalLM(config)
    model.save_pretrained(tmp_path / "llama")
    save_file({"input_ids": IDS}, tmp_path / "batch.safetensors")
    values = made(tmp_path)
    load = values["model.layers.0.mlp.gate.load"]
    torch.testing.assert_close(load.sum(), torch.tensor(2.0))  # each position uses two
    cs.apply(
        cs.resize(tmp_path / "llama", set={"num_local_experts": 3}, by=tmp_path / "stats.safetensors"), tmp_path / "out"
    )
    kept = sorted(sorted(range(6), key=lambda number: (-float(load[number]), number))[:3])
    after = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(after.model.layers[0].mlp.gate.weight, model.model.layers[0].mlp.gate.weight[kept])
    with pytest.raises(cs.ConfigError, match="does not have the inputs"):
        cs.resize(tmp_path / "llama", set={"intermediate_size": 12}, by=tmp_path / "stats.safetensors")


def test_statistics_of_another_model_are_an_error(llama: Any, tmp_path: Path) -> None:
    made(tmp_path)
    with torch.no_grad():
        llama.model.norm.weight.add_(1)  # as a fine-tuning may: the header stays the same
    llama.save_pretrained(tmp_path / "tuned")
    with pytest.raises(cs.ConfigError, match="statistics of another model: llama"):
        cs.resize(tmp_path / "tuned", set={"intermediate_size": 10}, by=tmp_path / "stats.safetensors")
    with pytest.raises(cs.ConfigError, match="has no statistics"):
        cs.resize(tmp_path / "llama", set={"intermediate_size": 10}, by=tmp_path / "batch.safetensors")


def test_a_checkpoint_without_a_network_is_an_error(tmp_path: Path, ckpt: Callable[..., Any]) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
    done = ckpt("stats", tmp_path / "w.safetensors", "-o", tmp_path / "stats.safetensors")
    assert done.code == 2
    assert "there is no config.json" in done.err


def test_the_command_writes_the_statistics_and_resize_reads_them(
    llama: Any, tmp_path: Path, ckpt: Callable[..., Any]
) -> None:
    stats = tmp_path / "stats.safetensors"
    assert ckpt("stats", tmp_path / "llama", "--inputs", tmp_path / "batch.safetensors", "-o", stats).code == 0
    done = ckpt("resize", tmp_path / "llama", "--set", "num_attention_heads=2", "--by", stats, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert "contribute most in stats.safetensors" in " ".join(done.err.split())


def test_positions_that_fill_a_batch_up_do_not_count(llama: Any, tmp_path: Path) -> None:
    mask = torch.ones(2, 10, dtype=torch.int64)
    mask[1, 6:] = 0
    batches = [IDS.clone(), torch.where(mask.bool(), IDS, 7)]
    found = []
    for ids in batches:
        save_file({"input_ids": ids, "attention_mask": mask}, tmp_path / "batch.safetensors")
        found.append(made(tmp_path))
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key])


HOSTILE = {
    "no number": {"a.b.influence": torch.ones(1)}, "empty": {"model.layers.0.influence": torch.ones(0)},
    "NaN": {f"model.layers.{n}.influence": torch.full((1,), torch.nan) for n in range(3)},
    "other lengths": {f"model.layers.{n}.mlp.down_proj.inputs": torch.ones(5) for n in range(3)},
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_statistics_that_were_edited_are_an_error(case: str, llama: Any, tmp_path: Path) -> None:
    made(tmp_path)
    with cs.open_checkpoint(tmp_path / "stats.safetensors") as opened:
        note = opened.metadata["ckptsurgeon.stats"]
    save_file(HOSTILE[case], tmp_path / "edited.safetensors", {"ckptsurgeon.stats": note})
    fields = {"num_hidden_layers": 2} if case != "other lengths" else {"intermediate_size": 10}
    with pytest.raises(cs.CheckpointError) as error:
        cs.resize(
            tmp_path / "llama", set=fields, layers="influential" if case != "other lengths" else None,
            by=tmp_path / "edited.safetensors",
        )  # fmt: skip
    assert error.value.exit_code in (2, 4)


def test_statistics_in_a_recipe_are_relative_to_it(tmp_path: Path, llama: Any) -> None:
    made(tmp_path)
    (tmp_path / "recipes").mkdir()
    text = "verb: resize\nsource: ../llama\nset: {intermediate_size: 20}\nby: ../stats.safetensors\noutput: ../out/\n"
    (tmp_path / "recipes/resize.yaml").write_text(text)
    cs.apply(tmp_path / "recipes/resize.yaml")
    assert cs.verify(tmp_path / "out").ok
