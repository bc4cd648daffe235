"""Statistics are what hooks of one's own see, belong to one model, and decide what is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.statistics.stored import NOTE, read_statistics
from ckptsurgeon.checkpoint.opening import open_checkpoint
from fixtures.resizing.networks import NETWORKS

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


@pytest.mark.costly
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


@pytest.mark.long
def test_notes_on_the_model_are_said(llama: Any, tmp_path: Path) -> None:
    """Here, the file also has codes of int8 that lost their scales."""
    path = tmp_path / "llama/model.safetensors"
    assert not [note for note in cs.stats(tmp_path / "llama").notes if "quantised codes" in note]
    codes = {f"more.{number}": (100 * torch.rand(64, 64)).round() for number in range(4)}
    save_file({**load_file(path), **codes}, path, {"format": "pt"})
    assert [note for note in cs.stats(tmp_path / "llama").notes if "quantised codes that were cast" in note]


@pytest.mark.long
def test_channels_are_kept_that_contribute_most(llama: Any, tmp_path: Path) -> None:
    values, weights = made(tmp_path), load_file(tmp_path / "llama/model.safetensors")
    plan = cs.resize(tmp_path / "llama", set={"intermediate_size": 10}, by=tmp_path / "stats.safetensors")
    assert plan.notes[0].startswith(
        "intermediate_size 24 to 10: those that contribute most according to stats.safetensors are kept"
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


@pytest.mark.long
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
    with pytest.raises(cs.ConfigError, match="give a smaller number of layers, and statistics"):
        cs.resize(tmp_path / "llama", **arguments)
    cs.apply(cs.resize(tmp_path / "llama", **arguments, by=tmp_path / "stats.safetensors"), tmp_path / "out")
    after = load_file(tmp_path / "out/model.safetensors")
    key = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(after[key.format(0)], weights[key.format(0)])
    assert torch.equal(after[key.format(1)], weights[key.format(2)])


WITH_EXPERTS = (
    "mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "deepseek_v3", "granitemoeshared", "hunyuan_v1_moe", "minimax",
)  # fmt: skip


def with_experts(kind: str, tmp_path: Path) -> Any:
    """Save a small network with experts in the folder ``llama``, and inputs; returns the network."""
    name, fields = NETWORKS[kind]
    torch.manual_seed(0)
    model = getattr(transformers, name)(transformers.CONFIG_MAPPING[kind](**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that routers choose
            parameter.copy_(torch.randn_like(parameter) / 4)
    model.save_pretrained(tmp_path / "llama")
    save_file({"input_ids": IDS}, tmp_path / "batch.safetensors")
    return model


def of_experts(model: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Compute the statistics of each module of experts by running it for one expert at a time, and one channel."""
    seen: dict[str, list[torch.Tensor]] = {}
    modules = {name: one for name, one in model.named_modules() if type(one).__name__.endswith("Experts")}
    for name, module in modules.items():
        module.register_forward_hook(
            lambda _, args, kwargs, out, name=name: seen.update({name: [*args, *kwargs.values()]}), with_kwargs=True
        )
    found = {}
    with torch.no_grad():
        model(IDS)
        for name, module in modules.items():
            hidden, chosen, weights = seen[name]
            number = module.down_proj.shape[0]
            saliency = torch.zeros(number)
            for expert in range(number):
                rows, places = torch.where(chosen == expert)
                if len(rows):
                    ones = torch.ones(len(rows), 1)
                    out = module.forward(hidden[rows], torch.full((len(rows), 1), expert), ones)
                    saliency[expert] = (out.norm(dim=1) * weights[rows, places]).mean()
            found[name] = {"saliency": saliency}
    return found


@pytest.mark.costly
@pytest.mark.parametrize("kind", WITH_EXPERTS)
def test_experts_are_kept_that_contribute_most(kind: str, tmp_path: Path) -> None:
    model = with_experts(kind, tmp_path)
    values = made(tmp_path)
    wanted = of_experts(model)
    assert wanted
    for name, own in wanted.items():
        torch.testing.assert_close(values[f"{name}.saliency"], own["saliency"], rtol=1e-4, atol=1e-7)
        assert own["saliency"].count_nonzero() > 1
    field = next(one for one in ("num_local_experts", "num_experts", "n_routed_experts") if one in NETWORKS[kind][1])
    old = NETWORKS[kind][1][field]
    cs.apply(cs.resize(tmp_path / "llama", set={field: old - 2}, by=tmp_path / "stats.safetensors"), tmp_path / "out")
    after = getattr(transformers, NETWORKS[kind][0]).from_pretrained(tmp_path / "out")
    for name, own in wanted.items():
        groups = NETWORKS[kind][1].get("n_group", 1)  # equally many of each group of the router are kept
        best = own["saliency"].view(groups, -1).topk((old - 2) // groups).indices.sort().values
        kept = (best + torch.arange(0, old, old // groups)[:, None]).flatten()
        weights = [one.get_submodule(name).down_proj for one in (model, after)]
        assert torch.equal(weights[0][kept], weights[1])


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "qwen3_moe"])
def test_channels_of_experts_are_kept_that_contribute_most(kind: str, tmp_path: Path) -> None:
    model = with_experts(kind, tmp_path)
    values = made(tmp_path)
    field = "moe_intermediate_size" if kind == "qwen3_moe" else "intermediate_size"
    cs.apply(cs.resize(tmp_path / "llama", set={field: 40}, by=tmp_path / "stats.safetensors"), tmp_path / "out")
    after = getattr(transformers, NETWORKS[kind][0]).from_pretrained(tmp_path / "out")
    for name, module in model.named_modules():
        if not type(module).__name__.endswith("Experts"):
            continue
        down = module.down_proj.detach() if kind != "gpt_oss" else module.down_proj.detach().transpose(1, 2)
        inputs = values[f"{name}.inputs"]
        assert inputs.shape == (down.shape[0], down.shape[2])
        kept = (inputs[:, None] * down.square()).sum((0, 1)).topk(40).indices.sort().values
        found = after.get_submodule(name).down_proj
        assert torch.equal(down[:, :, kept], found if kind != "gpt_oss" else found.transpose(1, 2))


@pytest.mark.long
def test_weights_of_16_bits_have_the_same_statistics(tmp_path: Path) -> None:
    model = with_experts("mixtral", tmp_path)
    model.bfloat16().save_pretrained(tmp_path / "llama")
    found = made(tmp_path)
    model.float().save_pretrained(tmp_path / "llama")
    for key, value in made(tmp_path).items():
        torch.testing.assert_close(found[key], value)
    assert any("saliency" in key for key in found)


def test_inputs_of_experts_are_what_their_last_layer_gets(tmp_path: Path) -> None:
    model = with_experts("mixtral", tmp_path)
    values = made(tmp_path)
    module, name = model.model.layers[0].mlp.experts, "model.layers.0.mlp.experts"
    given: list[torch.Tensor] = []
    module.register_forward_hook(lambda _, args, out: given.extend(args))
    with torch.no_grad():
        model(IDS)
        hidden, chosen, weights = given
        wanted = torch.zeros(values[f"{name}.inputs"].shape)
        for expert, weight in enumerate(module.gate_up_proj):
            by = (weights * (chosen == expert)).sum(1, keepdim=True)
            gate, up = (hidden @ weight.T).chunk(2, -1)
            wanted[expert] = (torch.nn.functional.silu(gate) * up * by).square().mean(0)
    torch.testing.assert_close(values[f"{name}.inputs"], wanted)


def test_experts_that_compute_otherwise_have_no_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_experts("mixtral", tmp_path)
    cls = transformers.models.mixtral.modeling_mixtral.MixtralExperts
    forward = cls.forward
    monkeypatch.setattr(cls, "forward", lambda self, *args: 1.1 * forward(self, *args))
    values = made(tmp_path)
    assert not any("experts." in key for key in values)
    with pytest.raises(cs.ConfigError, match="no statistics on the inputs of these layers: .*down_proj"):
        cs.resize(tmp_path / "llama", set={"intermediate_size": 12}, by=tmp_path / "stats.safetensors")
    plan = cs.resize(tmp_path / "llama", set={"num_local_experts": 3}, by=tmp_path / "stats.safetensors")
    cs.apply(plan, tmp_path / "out")  # by how often they are used
    load = values["model.layers.0.mlp.gate.load"]
    kept = sorted(sorted(range(4), key=lambda number: (-float(load[number]), number))[:3])
    before, after = (transformers.MixtralForCausalLM.from_pretrained(tmp_path / one) for one in ("llama", "out"))
    assert torch.equal(after.model.layers[0].mlp.gate.weight, before.model.layers[0].mlp.gate.weight[kept])


def test_statistics_of_another_model_are_an_error(llama: Any, tmp_path: Path) -> None:
    made(tmp_path)
    with torch.no_grad():
        llama.model.norm.weight.add_(1)  # as a fine-tuning may: the header stays the same
    llama.save_pretrained(tmp_path / "tuned")
    with pytest.raises(cs.ConfigError, match="statistics of another model, llama"):
        cs.resize(tmp_path / "tuned", set={"intermediate_size": 10}, by=tmp_path / "stats.safetensors")
    with pytest.raises(cs.ConfigError, match="has no statistics"):
        cs.resize(tmp_path / "llama", set={"intermediate_size": 10}, by=tmp_path / "batch.safetensors")


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("form", ["shards", "torch", "metadata"])
def test_statistics_belong_to_the_same_weights_in_other_files(llama: Any, tmp_path: Path, form: str) -> None:
    made(tmp_path)
    weights = load_file(tmp_path / "llama/model.safetensors")
    folder = tmp_path / "copy"
    llama.save_pretrained(folder, max_shard_size="6KB" if form == "shards" else "5GB")
    if form == "shards":
        assert len(list(folder.glob("*.safetensors"))) > 2
    elif form == "torch":
        (folder / "model.safetensors").unlink()
        torch.save(dict(reversed(weights.items())), folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors", {"format": "pt", "more": "of it"})
    found = []
    for one in ("llama", "copy"):
        plan = cs.resize(tmp_path / one, set={"intermediate_size": 10}, by=tmp_path / "stats.safetensors")
        cs.apply(plan, tmp_path / f"{one}.pt")
        found.append(torch.load(tmp_path / f"{one}.pt"))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(values, found[1][key]) for key, values in found[0].items())


@pytest.mark.costly
@pytest.mark.parametrize("key", ["model.norm.weight", "model.layers.1.mlp.down_proj.weight"])
@pytest.mark.parametrize("how", ["value", "dtype", "name"])
def test_they_do_not_belong_to_other_weights_in_other_files(llama: Any, tmp_path: Path, key: str, how: str) -> None:
    made(tmp_path)
    weights = load_file(tmp_path / "llama/model.safetensors")
    if how == "value":
        weights[key] = weights[key] * 1.01
    elif how == "dtype":
        weights[key] = weights[key].view(torch.int32)
    else:
        weights["other"] = weights.pop(key)
    save_file(weights, tmp_path / "other.safetensors", {"more": "of it"})
    with open_checkpoint(tmp_path / "other.safetensors") as opened, pytest.raises(cs.ConfigError, match="another"):
        read_statistics(tmp_path / "stats.safetensors", opened)


def test_they_do_not_belong_to_a_transposed_view_of_the_same_bytes(llama: Any, tmp_path: Path) -> None:
    made(tmp_path)
    weights = load_file(tmp_path / "llama/model.safetensors")
    key = "model.layers.1.self_attn.q_proj.weight"
    assert weights[key].shape[0] == weights[key].shape[1]
    torch.save(weights, tmp_path / "same.pt")
    torch.save({**weights, key: weights[key].T}, tmp_path / "turned.pt")
    with open_checkpoint(tmp_path / "same.pt") as opened:
        read_statistics(tmp_path / "stats.safetensors", opened)
    with open_checkpoint(tmp_path / "turned.pt") as opened, pytest.raises(cs.ConfigError, match="another"):
        read_statistics(tmp_path / "stats.safetensors", opened)


@pytest.mark.long
def test_a_file_of_an_older_version_belongs_to_its_files(llama: Any, tmp_path: Path) -> None:
    made(tmp_path)
    file = tmp_path / "stats.safetensors"
    with safe_open(file, "pt") as opened:
        said = json.loads(opened.metadata()[NOTE])
    del said["tensors"]
    save_file(load_file(file), file, {NOTE: json.dumps(said)})
    cs.resize(tmp_path / "llama", set={"intermediate_size": 10}, by=file)
    llama.save_pretrained(tmp_path / "copy", max_shard_size="6KB")
    with pytest.raises(cs.ConfigError, match="statistics of another model"):
        cs.resize(tmp_path / "copy", set={"intermediate_size": 10}, by=file)


def test_a_checkpoint_without_a_network_is_an_error(tmp_path: Path, ckpt: Callable[..., Any]) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
    done = ckpt("stats", tmp_path / "w.safetensors", "-o", tmp_path / "stats.safetensors")
    assert done.code == 2
    assert "there is no config.json" in done.err


@pytest.mark.long
def test_the_command_writes_the_statistics_and_resize_reads_them(
    llama: Any, tmp_path: Path, ckpt: Callable[..., Any]
) -> None:
    stats = tmp_path / "stats.safetensors"
    assert ckpt("stats", tmp_path / "llama", "--inputs", tmp_path / "batch.safetensors", "-o", stats).code == 0
    done = ckpt("resize", tmp_path / "llama", "--set", "num_attention_heads=2", "--by", stats, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert "contribute most according to stats.safetensors" in " ".join(done.err.split())


@pytest.mark.long
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


@pytest.mark.long
def test_positions_that_fill_a_batch_up_do_not_count_for_experts(tmp_path: Path) -> None:
    with_experts("mixtral", tmp_path)
    mask = torch.ones(2, 10, dtype=torch.int64)
    mask[1, 6:] = 0
    found = []
    for ids in (IDS.clone(), torch.where(mask.bool(), IDS, 7)):
        save_file({"input_ids": ids, "attention_mask": mask}, tmp_path / "batch.safetensors")
        found.append(made(tmp_path))
    assert any("saliency" in key for key in found[0])
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key])


HOSTILE = {
    "no number": {"a.b.influence": torch.ones(1)}, "empty": {"model.layers.0.influence": torch.ones(0)},
    "NaN": {f"model.layers.{n}.influence": torch.full((1,), torch.nan) for n in range(3)},
    "other lengths": {f"model.layers.{n}.mlp.down_proj.inputs": torch.ones(5) for n in range(3)},
}  # fmt: skip


@pytest.mark.costly
@pytest.mark.parametrize("case", HOSTILE)
def test_statistics_that_were_edited_are_an_error(case: str, llama: Any, tmp_path: Path) -> None:
    made(tmp_path)
    with open_checkpoint(tmp_path / "stats.safetensors") as opened:
        note = opened.metadata["ckptsurgeon.stats"]
    save_file(HOSTILE[case], tmp_path / "edited.safetensors", {"ckptsurgeon.stats": note})
    fields = {"num_hidden_layers": 2} if case != "other lengths" else {"intermediate_size": 10}
    with pytest.raises(cs.CheckpointError) as error:
        cs.resize(
            tmp_path / "llama", set=fields, layers="influential" if case != "other lengths" else None,
            by=tmp_path / "edited.safetensors",
        )  # fmt: skip
    assert error.value.exit_code in (2, 4)


@pytest.mark.long
def test_statistics_in_a_recipe_are_relative_to_it(tmp_path: Path, llama: Any) -> None:
    made(tmp_path)
    (tmp_path / "recipes").mkdir()
    text = "verb: resize\nsource: ../llama\nset: {intermediate_size: 20}\nby: ../stats.safetensors\noutput: ../out/\n"
    (tmp_path / "recipes/resize.yaml").write_text(text)
    cs.apply(tmp_path / "recipes/resize.yaml")
    assert cs.verify(tmp_path / "out").ok


@pytest.mark.long
def test_layers_that_are_left_out_are_named_with_their_influence(llama: Any, tmp_path: Path) -> None:
    values, arguments = made(tmp_path), {"num_hidden_layers": 2}
    plan = cs.resize(tmp_path / "llama", set=arguments, layers="influential", by=tmp_path / "stats.safetensors")
    influences = [float(values[f"model.layers.{number}.influence"]) for number in range(3)]
    least = influences.index(min(influences))
    assert f"1 layer left out ({least} with influence {influences[least]:.2g}); the outputs change" in plan.notes[0]
    plan = cs.resize(tmp_path / "llama", set=arguments, layers="evenly")
    assert "1 layer left out (1); the outputs change" in plan.notes[0]
