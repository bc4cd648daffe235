"""merge --align: permutations are found back, and an aligned network computes the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.aligning.align import TESTED, _groups, _network
from ckptsurgeon.planning.aligning.groups import Group, taking
from fixtures.resizing.networks import NETWORKS
from tests.api.resize.test_resize import outputs

transformers = pytest.importorskip("transformers", minversion="5")

# {model type: {(kind, units, heads of queries that share a unit): number of groups}}
EXPECTED: dict[str, dict[tuple[str, int, int], int]] = {
    "llama": {("residual stream", 64, 1): 1, ("heads", 2, 2): 2, ("channels", 96, 1): 2},
    "qwen3": {("residual stream", 64, 1): 1, ("heads", 2, 2): 2, ("channels", 96, 1): 2},
    "mixtral": {
        ("residual stream", 64, 1): 1, ("experts", 4, 1): 2, ("heads", 2, 2): 2, ("channels", 96, 1): 8,
    },
    "bert": {("residual stream", 64, 1): 1, ("heads", 4, 1): 2, ("channels", 96, 1): 2},
    "gpt2": {("residual stream", 64, 1): 1, ("heads", 4, 1): 2, ("channels", 256, 1): 2},
    "t5": {("residual stream", 64, 1): 1, ("heads", 4, 1): 4, ("channels", 96, 1): 4},
    "vit": {("residual stream", 64, 1): 1, ("heads", 4, 1): 2, ("channels", 96, 1): 2},
    "whisper": {("residual stream", 64, 1): 1, ("heads", 4, 1): 6, ("channels", 96, 1): 4},
    "gemma3_text": {("residual stream", 64, 1): 1, ("heads", 2, 2): 2, ("channels", 96, 1): 2},
    "mistral": {("residual stream", 64, 1): 1, ("heads", 2, 2): 2, ("channels", 96, 1): 2},
    "qwen2": {("residual stream", 64, 1): 1, ("heads", 2, 2): 2, ("channels", 96, 1): 2},
    "qwen2_moe": {
        ("residual stream", 64, 1): 1, ("experts", 4, 1): 2, ("heads", 2, 2): 2, ("channels", 96, 1): 8,
        ("channels", 48, 1): 2,
    },
    "qwen3_moe": {
        ("residual stream", 64, 1): 1, ("experts", 4, 1): 2, ("heads", 2, 2): 2, ("channels", 96, 1): 8,
    },
    "phi3": {("residual stream", 64, 1): 1, ("heads", 2, 2): 2, ("channels", 96, 1): 2},
    "gpt_oss": {("residual stream", 64, 1): 1, ("experts", 4, 1): 2, ("heads", 2, 2): 2},
    "deepseek_v3": {
        ("residual stream", 64, 1): 1, ("heads", 4, 1): 3, ("channels", 96, 1): 1, ("channels", 32, 1): 18,
    },
    "gpt_neox": {("residual stream", 64, 1): 1, ("heads", 4, 1): 2, ("channels", 96, 1): 2},
    "helium": {("channels", 96, 1): 2},
    "gemma2": {("residual stream", 64, 1): 1, ("heads", 2, 2): 2, ("channels", 96, 1): 2},
    "granitemoeshared": {("residual stream", 64, 1): 1, ("experts", 4, 1): 2, ("heads", 2, 2): 2},
    "minimax": {("residual stream", 64, 1): 1, ("experts", 4, 1): 2, ("channels", 96, 1): 8},
    "hunyuan_v1_moe": {
        ("residual stream", 64, 1): 1, ("experts", 4, 1): 2, ("heads", 2, 2): 2, ("channels", 96, 1): 10,
    },
    "bart": {("residual stream", 64, 1): 1, ("heads", 4, 1): 6, ("channels", 96, 1): 4},
    "xglm": {("heads", 4, 1): 2, ("channels", 96, 1): 2},
    "mpnet": {("residual stream", 64, 1): 1, ("heads", 4, 1): 1, ("channels", 96, 1): 2},
    "wav2vec2": {("heads", 4, 1): 2, ("channels", 96, 1): 2},
    "clip": {("heads", 4, 1): 4, ("channels", 96, 1): 4},
}  # fmt: skip
FIRST = ["llama", "qwen3", "mixtral", "bert", "gpt2", "t5", "vit", "whisper"]
Saved = Callable[..., Path]
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Return a function that returns the folder of a network with random weights, by its type and a seed."""
    folder = tmp_path_factory.mktemp("networks")

    @cache
    def made(kind: str, seed: int = 0, name: str = "", **more: Any) -> Path:
        usual, fields = NETWORKS[kind]
        path = folder / f"{kind}-{seed}-{name}{'-'.join(more)}"
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = getattr(transformers, name or usual)(transformers.CONFIG_MAPPING[kind](**{**fields, **more}))
            with torch.no_grad():
                for one in model.parameters():
                    if one.ndim == 1:  # norms of 1 and biases of 0 would hide errors
                        one.add_(torch.randn_like(one) * 0.1)
        model.save_pretrained(path)
        return path

    return made


GROUPS: dict[str, tuple[list[Group], list[str]]] = {}
"""What was found of each configuration: many tests ask for the same."""


def groups_of(folder: Path) -> tuple[list[Group], list[str]]:
    config = (folder / "config.json").read_text()
    if config not in GROUPS:
        with cs.open_checkpoint(folder) as opened:
            GROUPS[config] = _groups(_network(opened), None, opened)
    return GROUPS[config]


def planted(folder: Path, to: Path, seed: int = 1) -> Path:
    """Write the same network with all units of its groups in a random order."""
    drawn = np.random.default_rng(seed)
    groups, orders = groups_of(folder)[0], {}
    for number, group in enumerate(groups):
        units = drawn.permutation(group.units).tolist()
        shared = [unit * group.sharing + one for unit in units for one in drawn.permutation(group.sharing).tolist()]
        orders[number] = (units, shared)
    with cs.open_checkpoint(folder) as opened:
        rows = taking(groups, orders, opened, opened.ties)
    cs.apply(cs.rename(folder, operations=rows), to)
    (to / "config.json").write_bytes((folder / "config.json").read_bytes())
    return to


def aligned(reference: Path, model: Path, to: Path, *, is_verified: bool = True) -> cs.Receipt:
    """Write the model, aligned with the reference, alone."""
    receipt = cs.apply(cs.merge([reference, model], method="linear", weights=[0, 1], align=True), to)
    if is_verified:
        verification = cs.verify(to)
        verification.raise_if_failed()
        assert verification.compared == verification.checked > 0
    return receipt


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same_bits(one: Path, other: Path) -> bool:
    first, second = tensors(one), tensors(other)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    "kind", [*FIRST, *(pytest.param(one, marks=pytest.mark.long) for one in EXPECTED if one not in FIRST)]
)
def test_a_permutation_computes_the_same_and_is_found_back_bit_for_bit(kind: str, saved: Saved, tmp_path: Path) -> None:
    folder = saved(kind)
    found: dict[tuple[str, int, int], int] = {}
    for group in groups_of(folder)[0]:
        key = group.kind, group.units, group.sharing
        found[key] = found.get(key, 0) + 1
    assert found == EXPECTED[kind]
    other = planted(folder, tmp_path / "planted")
    assert not same_bits(folder, other)
    before, after = outputs(folder, kind), outputs(other, kind)
    assert ((before - after).abs().max() / before.abs().max()).item() < 1e-5
    receipt = aligned(folder, other, tmp_path / "out", is_verified=kind in FIRST)  # of the others bits are compared
    assert same_bits(folder, tmp_path / "out")
    said = [note for note in receipt.notes if "the order changed in" in note]
    assert len(said) == 1
    assert "was not tested in ckptsurgeon" not in " ".join(receipt.notes)


def test_all_types_that_are_said_to_be_tested_are() -> None:
    assert set(TESTED) == set(EXPECTED)
    assert set(NETWORKS) - set(EXPECTED) == {"bloom", "falcon", "gpt_bigcode"}


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("kind", ["llama", "bert", "mixtral"])
def test_an_aligned_model_of_another_seed_is_nearer_and_computes_the_same(
    kind: str, saved: Saved, tmp_path: Path
) -> None:
    first, second, out = saved(kind), saved(kind, 1), tmp_path / "out"
    receipt = aligned(first, second, out)
    assert cs.prove(second, out).verdict in ("SAME", "EQUIVALENT")
    before, after = (
        sum(float((tensors(first)[key] * one).sum()) for key, one in tensors(each).items()) for each in (second, out)
    )
    assert after > before
    assert [note for note in receipt.notes if " moved, similarity " in note]


@pytest.mark.long
def test_models_that_are_aligned_already_stay_as_they_are(saved: Saved, tmp_path: Path) -> None:
    folder, near = saved("qwen3"), tmp_path / "near"
    near.mkdir()
    drawn = torch.Generator().manual_seed(0)
    weights = {key: one + 1e-3 * torch.randn(one.shape, generator=drawn) for key, one in tensors(folder).items()}
    save_file(weights, near / "model.safetensors", {"format": "pt"})
    (near / "config.json").write_bytes((folder / "config.json").read_bytes())
    plan = cs.merge([folder, near], method="linear", weights=[0.5, 0.5], align=True)
    assert [note for note in plan.notes if "the order of all 5 groups of axes stays the same" in note]
    assert not any(source.operations for source in plan.sources)
    other = cs.merge([folder, near], method="linear", weights=[0.5, 0.5])
    assert plan.steps == other.steps
    cs.apply(plan, tmp_path / "out")


@pytest.mark.long
def test_the_mean_of_a_model_and_itself_in_another_order_is_the_model(saved: Saved, tmp_path: Path) -> None:
    folder = saved("gpt2")
    other = planted(folder, tmp_path / "planted")
    for align, name in ((True, "aligned"), (False, "apart")):
        cs.apply(cs.merge([folder, other], method="linear", weights=[0.5, 0.5], align=align), tmp_path / name)
    assert same_bits(folder, tmp_path / "aligned")
    assert not same_bits(folder, tmp_path / "apart")


@pytest.mark.long
def test_all_models_are_aligned_with_the_base(saved: Saved, tmp_path: Path) -> None:
    base = saved("llama")
    models = [planted(base, tmp_path / f"model{seed}", seed) for seed in (1, 2)]
    plan = cs.merge(models, method="task_arithmetic", base=base, weights=[0.5, 0.5], align=True)
    assert [bool(source.operations) for source in plan.sources] == [True, True, False]
    cs.apply(plan, tmp_path / "out")
    cs.verify(tmp_path / "out").raise_if_failed()
    assert same_bits(base, tmp_path / "out")


@pytest.mark.long
def test_a_model_without_a_head_keeps_the_order_of_its_outputs(saved: Saved, tmp_path: Path) -> None:
    folder = saved("bert", 0, "BertModel")
    other = planted(folder, tmp_path / "planted")
    assert {group.kind for group in groups_of(folder)[0]} == {"heads", "channels"}
    receipt = aligned(folder, other, tmp_path / "out")
    assert same_bits(folder, tmp_path / "out")
    assert [note for note in receipt.notes if "residual stream" in note and "outputs of BertModel" in note]


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_move_bit_for_bit(dtype: torch.dtype, saved: Saved, tmp_path: Path) -> None:
    folder = tmp_path / "short"
    cs.apply(cs.convert(saved("qwen2"), dtype=dtype), folder)

    other = planted(folder, tmp_path / "planted")
    aligned(folder, other, tmp_path / "out")
    assert same_bits(folder, tmp_path / "out")


@pytest.mark.long
def test_a_tied_output_layer_that_is_stored_twice_moves_with_the_embeddings(saved: Saved, tmp_path: Path) -> None:
    folder = saved("llama", 0, "", tie_word_embeddings=True)
    other = planted(folder, tmp_path / "planted")
    for path in (other,):
        weights = tensors(path)
        assert "lm_head.weight" not in weights
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, path / "model.safetensors", {"format": "pt"})
    plan = cs.merge([folder, other], method="linear", weights=[0, 1], align=True, on_missing="any")
    cs.apply(plan, tmp_path / "out")
    found = tensors(tmp_path / "out")
    assert all(torch.equal(one, found[key]) for key, one in tensors(folder).items())
    assert torch.equal(
        found.get("lm_head.weight", found["model.embed_tokens.weight"]), found["model.embed_tokens.weight"]
    )


def test_tensors_with_several_names_stay_tied(saved: Saved, tmp_path: Path) -> None:
    folder, weights = saved("gpt2"), {}
    other = planted(folder, tmp_path / "planted")
    for name, path in (("a", folder), ("b", other)):
        (tmp_path / name).mkdir()
        weights[name] = tensors(path)
        weights[name]["lm_head.weight"] = weights[name]["transformer.wte.weight"]
        torch.save(weights[name], tmp_path / name / "pytorch_model.bin")
        (tmp_path / name / "config.json").write_bytes((folder / "config.json").read_bytes())
    plan = cs.merge([tmp_path / "a", tmp_path / "b"], method="linear", weights=[0, 1], align=True)
    cs.apply(plan, tmp_path / "out.pth")
    cs.verify(tmp_path / "out.pth").raise_if_failed()
    found = torch.load(tmp_path / "out.pth")
    assert all(torch.equal(found[key], one) for key, one in weights["a"].items())
    assert found["lm_head.weight"].data_ptr() == found["transformer.wte.weight"].data_ptr()


@pytest.mark.long
def test_a_quantised_model_is_decoded_before_it_is_aligned(saved: Saved, tmp_path: Path) -> None:
    folder, coded = saved("llama"), tmp_path / "coded"
    other = planted(folder, tmp_path / "planted")
    cs.apply(cs.convert(other, quantize="fp8-channel"), coded)
    plan = cs.merge([folder, coded], method="linear", weights=[0, 1], align=True)
    cs.apply(plan, tmp_path / "out")
    cs.verify(tmp_path / "out").raise_if_failed()
    cs.apply(cs.convert(coded, dequantize=True), tmp_path / "plain")
    assert cs.prove(tmp_path / "plain", tmp_path / "out").verdict in ("SAME", "EQUIVALENT")
    for key, one in tensors(folder).items():
        assert torch.allclose(tensors(tmp_path / "out")[key], one, atol=0.1 * float(one.abs().max())), key


@pytest.mark.long
def test_a_quantised_reference_keeps_its_codes(saved: Saved, tmp_path: Path) -> None:
    folder, coded = saved("llama"), tmp_path / "coded"
    other = planted(folder, tmp_path / "planted")
    cs.apply(cs.convert(folder, quantize="fp8-channel"), coded)
    cs.apply(cs.merge([coded, other], method="linear", weights=[0.5, 0.5], align=True), tmp_path / "out")
    cs.verify(tmp_path / "out").raise_if_failed()
    with cs.open_checkpoint(tmp_path / "out") as out:
        assert out["model.layers.0.mlp.up_proj.weight"].dtype == "float8_e4m3fn"


OTHERS: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    # queries of all heads share a head of keys, in one tensor; each group of heads has its own
    "falcon": ("FalconForCausalLM", {"num_attention_heads": 4, "num_hidden_layers": 2, "multi_query": True}, {"channels"}),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", {"n_head": 4, "n_layer": 2, "n_embd": 64}, {"channels"}),
    # queries, values and keys in four parts
    "codegen": ("CodeGenForCausalLM", {"n_head": 4, "n_layer": 2, "n_embd": 64, "rotary_dim": 8}, {"channels"}),
    # norms over all heads whose size comes from the width
    "olmoe": ("OlmoeForCausalLM", {**NETWORKS["mixtral"][1], "num_key_value_heads": 4, "num_experts": 4}, {"experts", "channels"}),
    "bitnet": ("BitNetForCausalLM", {**NETWORKS["llama"][1]}, {"channels"}),
    # a Fourier transform mixes the residual stream
    "fnet": ("FNetForMaskedLM", {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}, {"channels"}),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_not_known_for_certain_stays_as_it_is(kind: str, tmp_path: Path) -> None:
    name, fields, kinds = OTHERS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = getattr(transformers, name)(
            transformers.CONFIG_MAPPING[kind](**{"hidden_size": 64, **fields, "vocab_size": 100})
        )
        with torch.no_grad():
            for one in network.parameters():
                one.add_(torch.randn_like(one) * 0.1)
    network.save_pretrained(tmp_path / "model")
    if not kinds:
        with pytest.raises(cs.PlanError, match="it is not known which axes of .* may be permuted"):
            groups_of(tmp_path / "model")
        return
    assert {group.kind for group in groups_of(tmp_path / "model")[0]} == kinds
    other = planted(tmp_path / "model", tmp_path / "planted")
    ids = torch.randint(5, 30, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before, after = (
            getattr(transformers, name).from_pretrained(path).eval()(input_ids=ids).logits
            for path in (tmp_path / "model", other)
        )
    assert ((before - after).abs().max() / before.abs().max()).item() < 1e-5


# Recipes and the command line.


@pytest.mark.long
def test_the_command_and_recipes_make_the_same_file(saved: Saved, tmp_path: Path, ckpt: Run) -> None:
    folder = saved("llama")
    other = planted(folder, tmp_path / "planted")
    done = ckpt(
        "merge",
        str(folder),
        str(other),
        "--method",
        "linear",
        "--weights",
        "0,1",
        "--align",
        "-o",
        str(tmp_path / "out"),
    )
    assert done.code == 0, done
    assert "residual stream: " in " ".join((done.out + done.err).split())
    own = tmp_path / "recipe.yaml"
    fields = {
        "verb": "merge",
        "models": [str(folder), str(other)],
        "method": "linear",
        "weights": [0, 1],
        "align": True,
    }
    own.write_text(json.dumps(fields))
    done = ckpt("apply", str(own), "-o", str(tmp_path / "again"))
    assert done.code == 0, done
    theirs = tmp_path / "mergekit.yaml"
    theirs.write_text(json.dumps({
        "merge_method": "linear", "dtype": "float32", "parameters": {"normalize": False},
        "models": [{"model": str(path), "parameters": {"weight": weight}} for path, weight in ((folder, 0), (other, 1))],
    }))  # fmt: skip
    done = ckpt("merge", str(theirs), "--align", "-o", str(tmp_path / "third"))
    assert done.code == 0, done
    assert all(same_bits(folder, tmp_path / name) for name in ("out", "again", "third"))
    cs.verify(tmp_path / "third").raise_if_failed()


@pytest.mark.long
def test_a_plan_that_was_stored_is_applied_without_another_matching(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ckpt: Run
) -> None:
    folder = saved("llama")
    other = planted(folder, tmp_path / "planted")
    done = ckpt("merge", str(folder), str(other), "-m", "linear", "--weights", "0,1", "--align", "-n", "--json")
    assert done.code == 0, done
    (tmp_path / "plan.json").write_text(done.out)
    monkeypatch.setattr("ckptsurgeon.engine.matching.matching.match", lambda *_: pytest.fail("matched again"))
    done = ckpt("apply", str(tmp_path / "plan.json"), "-o", str(tmp_path / "out"))
    assert done.code == 0, done
    assert same_bits(folder, tmp_path / "out")


# Groups that the user lists.


def perceptron(seed: int, order: list[int] | None = None) -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    first, bias, second = (torch.randn(shape, generator=drawn) for shape in ((6, 4), (6,), (3, 6)))
    at = order if order is not None else list(range(6))
    return {"fc1.weight": first[at], "fc1.bias": bias[at], "fc2.weight": second[:, at]}


HIDDEN = {"hidden": {"fc1.weight": 0, "fc1.bias": 0, "fc2.weight": -1}}


@pytest.mark.parametrize("form", ["map", "file", "axes"])
def test_groups_that_the_user_lists_are_aligned(form: str, tmp_path: Path) -> None:
    torch.save(perceptron(0), tmp_path / "a.pth")
    torch.save(perceptron(0, [3, 0, 5, 1, 2, 4]), tmp_path / "b.pth")
    given: Any = {"hidden": {"axes": HIDDEN["hidden"], "units": 6}} if form == "axes" else HIDDEN
    if form == "file":
        given = tmp_path / "groups.yaml"
        given.write_text("groups:\n  hidden: {fc1.weight: 0, fc1.bias: 0, fc2.weight: [1]}\n")
    plan = cs.merge(
        [tmp_path / "a.pth", tmp_path / "b.pth"], method="linear", weights=[0, 1], align=True, align_groups=given
    )
    cs.apply(plan, tmp_path / "out.pth")
    cs.verify(tmp_path / "out.pth").raise_if_failed()
    found = torch.load(tmp_path / "out.pth")
    assert all(torch.equal(found[key], one) for key, one in perceptron(0).items())
    assert [note for note in plan.notes if "groups of hidden: 6 of 6 moved" in note]
    assert plan.arguments["align_groups"]["hidden"]["axes"]


def test_units_of_several_elements_move_together() -> None:
    moved = perceptron(0, [4, 5, 0, 1, 2, 3])
    groups = {"hidden": {"axes": HIDDEN["hidden"], "units": 3}}
    plan = cs.merge([perceptron(0), moved], method="linear", weights=[0, 1], align=True, align_groups=groups)
    assert plan.sources[1].operations[0]["block"] == 2


@pytest.mark.parametrize(
    ("groups", "why"),
    [
        ({}, "is not a map from names of groups to axes"),
        ({"hidden": 3}, "the group hidden is 3, not a map"),
        ({"hidden": {}}, "not a map from keys to dimensions"),
        ({"hidden": {"fc1.weight": "rows"}}, "not a map from keys to dimensions"),
        ({"hidden": {"axes": {"fc1.weight": 0}, "units": 0}}, "units of hidden is 0, not a whole number above 0"),
        ({"hidden": {"axes": {"fc1.weight": 0}, "unit": 2}}, "not a map from keys to dimensions"),
        ({"hidden": {"fc3.weight": 0}}, "lists fc3.weight, which .* does not have"),
        ({"hidden": {"fc1.weight": 2}}, "fc1.weight has no dimension 2"),
        ({"hidden": {"fc1.weight": [0, 1]}}, "hidden is divided into 4 units, but dimension 0 of fc1.weight has size 6"),
        ({"a": {"fc1.weight": 0}, "b": {"fc1.weight": 0}}, "dimension 0 of fc1.weight is in the groups a and b"),
    ],
)  # fmt: skip
def test_groups_that_are_wrong_are_errors(groups: Any, why: str) -> None:
    with pytest.raises(cs.ConfigError, match=why):
        cs.merge([perceptron(0), perceptron(1)], method="linear", weights=[0, 1], align=True, align_groups=groups)


# Models that cannot be aligned.


def test_a_network_that_is_not_known_needs_a_list_of_axes(tmp_path: Path, ckpt: Run) -> None:
    with pytest.raises(cs.ConfigError, match="is in memory, so it is not known which of its axes") as error:
        cs.merge([perceptron(0), perceptron(1)], method="linear", weights=[0, 1], align=True)
    assert "align_groups" in str(error.value)
    for name in ("a", "b"):
        torch.save(perceptron(0), tmp_path / f"{name}.pth")
    done = ckpt(
        "merge",
        str(tmp_path / "a.pth"),
        str(tmp_path / "b.pth"),
        "-m",
        "linear",
        "--align",
        "-o",
        str(tmp_path / "o.pth"),
    )
    assert done.code == 2
    assert "there is no config.json" in done.err
    assert "--align-groups" in done.err


def test_axes_without_align_are_an_error() -> None:
    with pytest.raises(cs.ConfigError, match="only for"):
        cs.merge([perceptron(0), perceptron(1)], method="linear", weights=[0, 1], align_groups=HIDDEN)


def test_models_of_other_sizes_are_an_error(saved: Saved, tmp_path: Path) -> None:
    other = saved("llama", 0, "", intermediate_size=128)
    with pytest.raises(cs.PlanError, match="cannot be aligned with .* its intermediate_size is 128, not 96"):
        cs.merge([saved("llama"), other], method="linear", weights=[0, 1], align=True)
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(cs.PlanError, match="cannot be aligned with .*: the shapes of .* differ"):
        cs.merge([saved("llama"), alone], method="linear", weights=[0, 1], align=True)


def test_models_with_other_heads_are_an_error_although_their_shapes_are_the_same(saved: Saved) -> None:
    other = saved("llama", 0, "", num_attention_heads=8, num_key_value_heads=4)
    assert {key: one.shape for key, one in tensors(other).items()} == {
        key: one.shape for key, one in tensors(saved("llama")).items()
    }
    with pytest.raises(cs.PlanError, match="its num_(attention|key_value)_heads is [48], not [24]"):
        cs.merge([saved("llama"), other], method="linear", weights=[0, 1], align=True)


def test_one_model_has_nothing_to_be_aligned_with(saved: Saved) -> None:
    plan = cs.merge([saved("llama")], method="passthrough", align=True)
    assert "--align changes nothing: there is only one model" in plan.notes


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("method", ["slerp", "ties"])
def test_a_method_with_a_base_gets_models_in_its_order(method: str, saved: Saved, tmp_path: Path) -> None:
    base = saved("llama")
    other = planted(base, tmp_path / "planted")
    more: dict[str, Any] = {"t": 0.5} if method == "slerp" else {"density": 0.5, "weights": [1.0]}
    cs.apply(cs.merge([other], method=method, base=base, align=True, **more), tmp_path / "out")
    cs.verify(tmp_path / "out").raise_if_failed()
    for key, one in tensors(base).items():
        assert torch.allclose(tensors(tmp_path / "out")[key], one, atol=1e-6), key


@pytest.mark.long
def test_another_vocabulary_is_not_compared_but_moves_too(saved: Saved, tmp_path: Path) -> None:
    folder = saved("llama")
    small = tmp_path / "small"
    other = planted(folder, tmp_path / "planted")
    cs.apply(cs.resize(other, set={"vocab_size": 104}), small)
    plan = cs.merge([folder, small], method="linear", weights=[0, 1], align=True, on_mismatch="slice", vocab="place")
    cs.apply(plan, tmp_path / "out")
    assert same_bits(folder, tmp_path / "out")


def test_nan_names_the_tensor(saved: Saved, tmp_path: Path, ckpt: Run) -> None:
    folder = saved("llama")
    other = planted(folder, tmp_path / "planted")
    weights = tensors(other)
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    done = ckpt("merge", str(folder), str(other), "-m", "linear", "--align", "-o", str(tmp_path / "out"))
    assert done.code == 4
    assert "model.layers.1.mlp.up_proj.weight" in done.err
    assert "NaN or infinite" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_network_without_axes_that_are_known_is_an_error(saved: Saved) -> None:
    with pytest.raises(cs.PlanError, match="it is not known which axes of .* may be permuted"):
        cs.merge([saved("bloom"), saved("bloom", 1)], method="linear", weights=[0, 1], align=True)


def test_little_memory_says_how_much_is_needed(saved: Saved) -> None:
    with pytest.raises(cs.PlanError, match="similarities of 96 units .channels of model.layers.0.mlp., and") as error:
        cs.merge([saved("llama"), saved("llama", 1)], method="linear", weights=[0, 1], align=True, memory="30000B")
    assert error.value.hint == "Allow more memory: --memory 16777216B."
    cs.merge([saved("llama"), saved("llama", 1)], method="linear", weights=[0, 1], align=True, memory="16777216B")
