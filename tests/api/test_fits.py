"""``fits``: the same answer as ``load_state_dict(strict=True)``, and a command that makes a checkpoint fit."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import ckptsurgeon as cs
from ckptsurgeon.destinations import transformers as kind
from ckptsurgeon.destinations._load import load_target
from ckptsurgeon.destinations.hf import cached_build
from ckptsurgeon.destinations.hf import ignored_keys as ignored_keys_module
from ckptsurgeon.util.notes import is_serious, notes_about

from ..helpers.transformers_models import BERT, GPT2, MIXTRAL, model_of, opened, saved, write_config
from ..helpers.zoo import BY_NAME

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, layers=3, width=4, tied=False, normed=False):
        super().__init__()
        self.embed = nn.Embedding(6, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 6, bias=False)
        self.register_buffer("mask", torch.ones(2), persistent=False)
        if normed:
            for layer in self.layers:
                nn.utils.parametrizations.weight_norm(layer)
        if tied:
            self.head.weight = self.embed.weight
"""


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Callable[..., nn.Module]:
    """Write net.py and dst.yaml, which builds its module; returns the function that builds the module."""
    Path("net.py").write_text(NET)
    monkeypatch.syspath_prepend(os.getcwd())
    sys.modules.pop("net", None)

    def build(**fields: Any) -> nn.Module:
        given = "".join(f", {name}: {json.dumps(value)}" for name, value in fields.items())
        Path("dst.yaml").write_text(f"model: {{_target_: net.Net{given}}}\n")
        import net  # type: ignore[import-not-found]

        found: nn.Module = net.Net(**fields)
        return found

    return build


def strict(model: nn.Module, state: dict[str, Any]) -> bool:
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError:
        return False
    return True


CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "as it is": lambda state: state,
    "one missing": lambda state: {k: v for k, v in state.items() if k != "head.weight"},
    "one unexpected": lambda state: {**state, "more": torch.ones(1)},
    "a buffer that is not saved": lambda state: {**state, "mask": torch.ones(2)},
    "another shape": lambda state: {**state, "head.weight": torch.ones(7, 4)},
    "transposed": lambda state: {**state, "head.weight": torch.ones(4, 6)},
    "another dtype": lambda state: {k: v.double() if v.is_floating_point() else v for k, v in state.items()},
    "half": lambda state: {k: v.half() for k, v in state.items()},
    "a 0-d tensor of one number": lambda state: {**state, "norm.num_batches_tracked": torch.ones(1, dtype=torch.long)},
    "other names": lambda state: {k.replace("layers", "blocks"): v for k, v in state.items()},
    "a wrapper": lambda state: {f"module.{k}": v for k, v in state.items()},
    "more layers": lambda state: {**state, "layers.3.weight": torch.ones(4, 4), "layers.3.bias": torch.ones(4)},
    "nothing alike": lambda state: {"other": torch.ones(3)},
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_the_answer_is_that_of_torch(change: str, tied: bool, net: Callable[..., nn.Module]) -> None:
    model = net(tied=tied)
    state = CHANGES[change]({key: value.clone() for key, value in model.state_dict().items()})
    torch.save(state, "src.pth")
    found = cs.fits("src.pth", "dst.yaml")
    assert found.fits == strict(model, state)
    assert found.fits == found.verdict.startswith("fits: ")


@pytest.mark.costly
@pytest.mark.parametrize("change", [name for name in CHANGES if name != "nothing alike"])
def test_the_command_makes_it_fit(change: str, net: Callable[..., nn.Module], ckpt: Callable[..., Any]) -> None:
    model = net()
    torch.save(CHANGES[change]({key: value.clone() for key, value in model.state_dict().items()}), "src 1.pth")
    found = cs.fits("src 1.pth", "dst.yaml")
    if found.fits:
        assert not found.command
        return
    made = ckpt(*shlex.split(found.command_line)[1:])
    assert made.code == 0, made
    output = found.command[-1]
    assert ckpt("fits", output, "dst.yaml").code == 0
    assert strict(model, torch.load("out.pth")) if ckpt("convert", output, "-o", "out.pth").code == 0 else False


def without(state: dict[str, Any], ending: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if not key.endswith(ending)}


@pytest.mark.costly
@pytest.mark.parametrize(("ending", "fits"), [("num_batches_tracked", True), ("running_mean", False)])
def test_torch_fills_in_the_counter_of_batch_norm_for_safetensors(
    ending: str, fits: bool, net: Callable[..., nn.Module]
) -> None:
    model = net()
    save_file(without(model.state_dict(), ending), "src.safetensors")
    assert strict(model, load_file("src.safetensors")) is fits
    assert cs.fits("src.safetensors", "dst.yaml").fits is fits
    state = model.state_dict()
    del state[f"norm.{ending}"]
    torch.save(state, "src.pth")  # with the version of batch norm, in which the counter must be there
    assert not strict(model, torch.load("src.pth"))
    assert not cs.fits("src.pth", "dst.yaml").fits


OLDER = {"original0": "weight_g", "original1": "weight_v"}


@pytest.mark.costly
@pytest.mark.parametrize(
    ("change", "fits"),
    [
        (lambda state: state, True),
        (lambda state: {**state, "layers.0.parametrizations.weight.original0": torch.ones(1)}, True),
        (lambda state: without(state, "0.weight_g"), False),
        (lambda state: {**state, "layers.0.weight_g": torch.ones(5, 1)}, False),
        (lambda state: {**state, "more_g": torch.ones(1), "more_v": torch.ones(1)}, False),
    ],
    ids=["older keys", "both", "half", "another shape", "others"],
)
def test_torch_takes_the_older_keys_of_weight_norm(
    change: Callable[[dict[str, Any]], dict[str, Any]], fits: bool, net: Callable[..., nn.Module], ckpt: Any
) -> None:
    model = net(normed=True)
    state = dict(model.state_dict())
    for new, old in OLDER.items():
        state = {key.replace(f"parametrizations.weight.{new}", old): value for key, value in state.items()}
    state = change(state)
    torch.save(state, "src.pth")
    assert strict(model, dict(state)) is fits
    found = cs.fits("src.pth", "dst.yaml")
    assert found.fits is fits
    if not fits:
        assert ckpt(*found.command[1:]).code == 0
        assert found.counts.get("initialised", 0) <= 2
        assert cs.fits(found.command[-1], "dst.yaml").fits


def test_the_differences_are_grouped(net: Callable[..., nn.Module]) -> None:
    state = net().state_dict()
    del state["norm.weight"]
    state["head.weight"], state["extra"] = torch.ones(7, 4), torch.ones(1)
    state = {key: value.double() if value.is_floating_point() else value for key, value in state.items()}
    torch.save({key.replace("layers", "blocks"): value for key, value in state.items()}, "src.pth")
    found = cs.fits("src.pth", "dst.yaml")
    assert found.verdict == "does not fit: 6 under other names, 1 missing, 1 of another shape, 1 unexpected"
    assert list(found.rules) == ["blocks=layers"]
    assert found.renamed == {f"blocks.{n}.{k}": f"layers.{n}.{k}" for n in range(3) for k in ("weight", "bias")}
    assert [pair.key for pair in found.mismatched] == ["head.weight"]
    assert "--on-mismatch" in found.command
    assert {pair.first.dtype for pair in found.retyped} == {"float64"}
    assert found.counts["initialised"] == 2


def test_modules_of_one_shape_are_not_taken_for_each_other(net: Callable[..., nn.Module]) -> None:
    state = net().state_dict()
    state["pooler.weight"] = state.pop("head.weight")
    torch.save(state, "src.pth")
    found = cs.fits("src.pth", "dst.yaml")
    assert not found.rules
    assert found.verdict == "does not fit: 1 missing, 1 unexpected"


def test_matrices_that_are_transposed_under_other_names_are_said() -> None:
    """Conv1D of GPT-2 in layers of torch: c_fc has the shape of fc2, and must not fill it."""
    here = {"mlp.c_fc.weight": (4, 6), "mlp.c_fc.bias": (6,), "mlp.c_proj.weight": (6, 4), "mlp.c_proj.bias": (4,)}
    there = {"fc1.weight": (6, 4), "fc1.bias": (6,), "fc2.weight": (4, 6), "fc2.bias": (4,)}
    for name, at, shapes in (("gpt.pth", "h", here), ("net.pth", "layers", there)):
        torch.save({f"{at}.{n}.{key}": torch.ones(shape) for n in range(2) for key, shape in shapes.items()}, name)
    found = cs.fits("gpt.pth", "net.pth")
    assert found.renamed == {
        f"h.{n}.mlp.{old}.bias": f"layers.{n}.{new}.bias"
        for old, new in (("c_fc", "fc1"), ("c_proj", "fc2"))
        for n in (0, 1)
    }
    assert any("4 matrices whose names correspond, because only one" in note for note in found.notes)


def test_other_numbers_of_layers_are_said(net: Callable[..., nn.Module]) -> None:
    torch.save(net(layers=5).state_dict(), "src.pth")
    net(layers=3)
    assert "layers has 5 layers in src.pth, but 3 in dst.yaml" in cs.fits("src.pth", "dst.yaml").notes


def test_no_command_is_proposed_if_nothing_would_be_loaded(net: Callable[..., nn.Module]) -> None:
    net()
    torch.save({"other": torch.ones(3)}, "src.pth")
    found = cs.fits("src.pth", "dst.yaml")
    assert not found.command
    assert found.notes[-1].startswith("no transplant makes the checkpoint fit: ")
    assert is_serious(found.notes[-1])  # the reason for exit status 1 is also shown with -q


def test_another_checkpoint_is_a_destination(ckpt: Callable[..., Any]) -> None:
    save_file({"a.weight": torch.ones(2, 3)}, "dst.safetensors")
    save_file({"b.a.weight": torch.ones(2, 3)}, "src.safetensors")
    assert cs.fits("dst.safetensors", "dst.safetensors").fits
    found = cs.fits("src.safetensors", "dst.safetensors")
    assert found.rules == ("b=",)
    assert ckpt(*found.command[1:]).code == 0
    assert cs.fits(found.command[-1], "dst.safetensors").fits


def test_a_dict_of_tensors_is_a_source_without_a_command() -> None:
    save_file({"a": torch.ones(2)}, "dst.safetensors")
    assert cs.fits({"a": torch.ones(2)}, "dst.safetensors").fits
    found = cs.fits({"b.a": torch.ones(2)}, "dst.safetensors")
    assert (found.rules, found.command) == (("b=",), ())


# Models of transformers.


@pytest.mark.costly
@pytest.mark.parametrize("place", ["dst", "dst/config.json"])
def test_a_folder_of_transformers_fits_its_configuration(place: str) -> None:
    saved("dst", BERT, "BertForMaskedLM")
    found = cs.fits("dst", place)
    assert found.fits
    assert found.tied["cls.predictions.decoder.weight"] == "bert.embeddings.word_embeddings.weight"


@pytest.mark.long
def test_the_other_name_of_a_tied_tensor_is_enough() -> None:
    model = model_of(GPT2, "GPT2LMHeadModel")
    write_config("dst/config.json", GPT2, "GPT2LMHeadModel")
    state = {key: value for key, value in model.state_dict().items() if key != "transformer.wte.weight"}
    save_file(state, "src.safetensors")
    assert cs.fits("src.safetensors", "dst/config.json").fits
    del state["lm_head.weight"]
    save_file(state, "src.safetensors")
    assert not cs.fits("src.safetensors", "dst/config.json").fits


@pytest.mark.long
def test_an_embedding_that_is_the_output_layer_is_copied_into_an_untied_one(ckpt: Callable[..., Any]) -> None:
    saved("src", GPT2, "GPT2LMHeadModel", tie_word_embeddings=True)
    write_config("dst/config.json", GPT2, "GPT2LMHeadModel", tie_word_embeddings=False)
    found = cs.fits("src", "dst/config.json")
    assert list(found.missing) == ["lm_head.weight"]
    assert not found.counts.get("initialised")
    said = (
        "src uses its embedding as output layer (tie_word_embeddings): the command copies transformer.wte into lm_head"
    )
    assert said in found.notes
    assert ckpt(*found.command[1:]).code == 0
    assert cs.fits("src-fits", "dst").fits
    made, source = load_file("src-fits/model.safetensors"), load_file("src/model.safetensors")
    assert torch.equal(made["lm_head.weight"], source["transformer.wte.weight"])


@pytest.mark.long
def test_an_output_layer_that_an_untied_source_lacks_is_not_a_copy() -> None:
    saved("src", GPT2, "GPT2Model", tie_word_embeddings=False)
    write_config("dst/config.json", GPT2, "GPT2LMHeadModel", tie_word_embeddings=False)
    found = cs.fits("src", "dst/config.json")
    assert found.counts["initialised"] == 1
    assert "--source" not in found.command


@pytest.mark.long
def test_what_a_class_makes_itself_is_said() -> None:
    """transformers does not save the sinusoidal positions of Marian."""
    from transformers import MarianConfig, MarianMTModel

    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = MarianConfig(
        vocab_size=12, pad_token_id=11, decoder_start_token_id=11, max_position_embeddings=16, **sizes, **heads
    )
    MarianMTModel(config).save_pretrained("marian")
    found = cs.fits("marian", "marian/config.json")
    positions = [f"model.{one}.embed_positions.weight" for one in ("encoder", "decoder")]
    assert list(found.missing) == positions
    assert (found.fits, found.loader) == (True, "MarianMTModel")
    assert found.notes == (
        f"from_pretrained of MarianMTModel initialises {', '.join(positions)} itself, and accepts checkpoints without them",
    )


@pytest.mark.long
def test_a_tied_tensor_of_which_no_name_is_there_is_missing_once() -> None:
    saved("base", BERT, "BertModel")
    write_config("dst/config.json", BERT, "BertForMaskedLM")
    found = cs.fits("base", "dst")
    assert "cls.predictions.bias" in found.missing
    assert found.tied["cls.predictions.decoder.bias"] == "cls.predictions.bias"
    assert found.tied["cls.predictions.decoder.weight"] == "bert.embeddings.word_embeddings.weight"


def test_the_command_for_another_head_gives_a_folder_that_loads(ckpt: Callable[..., Any]) -> None:
    saved("base", BERT, "BertModel")
    write_config("dst/config.json", BERT, "BertForSequenceClassification", num_labels=5)
    found = cs.fits("base", "dst/config.json")
    assert found.renamed
    assert not found.rules  # transformers knows the names
    assert any(note.startswith("from_pretrained of transformers ") for note in found.notes)
    assert ckpt(*found.command[1:]).code == 0
    assert cs.fits("base-fits", "dst").fits
    assert not opened("BertForSequenceClassification", "base-fits")[1]


@pytest.mark.long
def test_an_older_layout_is_converted_by_the_command(ckpt: Callable[..., Any]) -> None:
    saved("mixtral", MIXTRAL, "MixtralForCausalLM")
    found = cs.fits("mixtral", "mixtral")
    assert not found.strict
    assert ckpt(*found.command[1:]).code == 0
    assert cs.fits("mixtral-fits", "mixtral").strict


DENSE = {**{name: value for name, value in MIXTRAL.items() if name != "num_local_experts"}, "model_type": "llama"}


def advice(source: str, destination: str) -> list[str]:
    return [note for note in cs.fits(source, destination).notes if "ckpt resize" in note]


@pytest.mark.long
def test_a_dense_model_gets_the_advice_that_keeps_trained_layers_of_experts(ckpt: Callable[..., Any]) -> None:
    saved("moe dir", MIXTRAL, "MixtralForCausalLM")
    saved("dense", DENSE, "LlamaForCausalLM")
    (said,) = advice("moe dir", "dense")
    assert said.startswith("to keep trained feed-forward layers, take those of one expert: ckpt resize 'moe dir'")
    done = ckpt(*shlex.split(said.partition(": ckpt ")[2]))
    assert done.code == 0, done
    assert cs.fits("moe dir-llama", "dense").strict


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize(
    "other", [{"num_hidden_layers": 3}, {"intermediate_size": 16}, {"vocab_size": 60}, {"attention_bias": True}]
)
def test_no_command_is_advised_that_does_not_make_the_dense_model(other: dict[str, Any]) -> None:
    saved("moe", MIXTRAL, "MixtralForCausalLM")
    saved("dense", {**DENSE, **other}, "LlamaForCausalLM")
    assert not advice("moe", "dense")
    assert not advice("dense", "moe")


@pytest.mark.long
def test_a_network_of_another_kind_gets_no_advice_on_experts() -> None:
    saved("moe", MIXTRAL, "MixtralForCausalLM")
    saved("gpt2", GPT2, "GPT2LMHeadModel")
    assert not advice("moe", "gpt2")


@pytest.mark.long
def test_token_lists_beside_both_are_proposed(ckpt: Callable[..., Any]) -> None:
    saved("src", BERT, "BertForMaskedLM")
    Path("src/vocab.txt").write_text("".join(f"token{n}\n" for n in range(50)))
    write_config("dst/config.json", {**BERT, "vocab_size": 40, "pad_token_id": 0}, "BertForMaskedLM")
    Path("dst/vocab.txt").write_text("".join(f"token{n}\n" for n in (0, *range(49, 10, -1))))
    found = cs.fits("src", "dst")
    assert found.command[found.command.index("--vocab") + 1] == "src/vocab.txt:dst/vocab.txt"
    assert ckpt(*found.command[1:]).code == 0
    assert cs.fits("src-fits", "dst").fits


def quantised_folder() -> Path:
    """A small Llama with blocks of fp8 in ``quantised``, made of the one in ``plain``."""
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, vocab_size=32
    )
    transformers.LlamaForCausalLM(config).save_pretrained("plain")
    cs.apply(cs.convert("plain", quantize="fp8-block"), "quantised")
    return Path("quantised")


@pytest.mark.long
def test_quantised_weights_under_other_names_do_not_fit_by_decoding_alone() -> None:
    folder = quantised_folder()
    state = {
        f"net.{key}" if ".layers." in key else key: one for key, one in load_file(folder / "model.safetensors").items()
    }
    save_file(state, "renamed.safetensors", metadata={"quantization_config": json.dumps(
        json.loads((folder / "config.json").read_text())["quantization_config"]
    )})  # fmt: skip
    found = cs.fits("renamed.safetensors", "plain")
    assert found.renamed
    assert "--encoding" in found.command
    assert "fit" not in found.verdict.removeprefix("does not fit")
    assert re.search(r"\d+ under other names", found.verdict)


@pytest.mark.costly
@pytest.mark.parametrize("scheme", ["fp8-block", "mlx"])
def test_quantised_weights_fit_once_decoded_only_if_no_shape_differs(scheme: str, tmp_path: Path) -> None:
    """The packed codes of MLX have other shapes than their weights, and fit once decoded."""
    folder = BY_NAME[scheme].folder(tmp_path / "coded")
    cs.apply(cs.convert(folder, dequantize=True), "plain")
    state = load_file("plain/model.safetensors")
    assert cs.fits(folder / "model.safetensors", "plain/model.safetensors").verdict.endswith(
        "decoded, all 4 tensors fit"
    )
    save_file({**state, "model.norm.weight": torch.zeros(200)}, "wider.safetensors")
    found = cs.fits(folder / "model.safetensors", "wider.safetensors")
    assert "--on-mismatch" in found.command
    assert "decoded" not in found.verdict
    assert "of other shapes" in found.verdict or "of another shape" in found.verdict


@pytest.mark.long
def test_scales_are_no_other_names_of_weights() -> None:
    quantised_folder()
    found = cs.fits("plain", "quantised")
    assert found.verdict == "does not fit: 7 missing"
    assert all(key.endswith("_scale_inv") for key in found.missing)
    assert not found.renamed


@pytest.mark.long
def test_the_configuration_of_a_quantised_model_stands_for_its_folder(ckpt: Callable[..., Any]) -> None:
    folder = quantised_folder()
    done = ckpt("fits", folder, folder / "config.json")
    assert (done.code, done.out) == (0, "fits: all 19 tensors\n")
    assert "config.json describes a quantised model: keys and shapes are read from the weights" in done.err
    assert ckpt("fits", "plain", folder / "config.json").code == 1
    Path("alone").mkdir()
    shutil.copy(folder / "config.json", "alone")
    assert "no quantised model can be built" in ckpt("fits", folder, "alone/config.json").err


def test_a_quantised_model_is_compared_with_the_class_of_its_configuration(ckpt: Callable[..., Any]) -> None:
    folder = quantised_folder()
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "intermediate_size": 256, "num_hidden_layers": 2}))
    done = ckpt("fits", folder, path)
    assert done.code == 1
    assert done.out.startswith("does not fit: 9 missing, 3 of other shapes\n")
    assert "(128, 64) to (256, 64)" in done.out  # of the decoded weight
    path.write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
    assert "keys and shapes are not compared with a transformers class" in " ".join(
        ckpt("fits", folder, path).err.split()
    )
    path.write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight_scale_inv"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found = cs.fits(folder, path)
    assert (found.fits, found.uncopied) == (False, {"model.layers.0.mlp.up_proj.weight": "cannot be decoded"})


@pytest.mark.parametrize("names", [("q.safetensors", "plain.safetensors"), ("plain.safetensors", "q.safetensors")])
def test_quantised_against_plain_is_said(names: tuple[str, str]) -> None:
    codes = torch.ones(4, 4).to(torch.float8_e4m3fn)
    save_file({"a.weight": codes, "a.weight_scale_inv": torch.ones(1, 1)}, "q.safetensors")
    save_file({"a.weight": torch.ones(4, 4)}, "plain.safetensors")
    found = cs.fits(*names)
    assert not found.fits
    assert any("q.safetensors is quantised and plain.safetensors is not" in note for note in found.notes)
    assert ("--encoding" in found.command) == (names[0] == "q.safetensors")
    if names[0] == "q.safetensors":
        assert found.verdict == "does not fit as it is stored: 1 weight is quantised; decoded, 1 tensor fits"
    assert not found.retyped  # codes are not cast


def test_the_answer_comes_first_and_decides_the_exit_status(
    net: Callable[..., nn.Module], ckpt: Callable[..., Any]
) -> None:
    torch.save(net().state_dict(), "src.pth")
    good = ckpt("fits", "src.pth", "dst.yaml")
    assert (good.code, good.out) == (0, "fits: all 13 tensors\n")
    net(width=5)
    bad = ckpt("fits", "src.pth", "dst.yaml")
    assert bad.code == 1
    assert bad.out.startswith("does not fit: 12 of other shapes\n")
    assert "(4, 4) to (5, 5)  x 3  layers.{0..2}.weight" in bad.out
    assert bad.out.splitlines()[-1].startswith("    ckpt transplant src.pth dst.yaml ")
    assert ckpt("fits", "src.pth", "dst.yaml", "-q").out == ""
    data = json.loads(ckpt("fits", "src.pth", "dst.yaml", "--json").out)
    assert (data["kind"], data["fits"]) == ("ckpt.fits", False)


def test_what_cannot_be_read_is_an_error(ckpt: Callable[..., Any], net: Callable[..., nn.Module]) -> None:
    net()
    assert ckpt("fits", "nowhere.pth", "dst.yaml").code == 3
    torch.save({"a": torch.ones(1)}, "src.pth")
    assert ckpt("fits", "src.pth", "nowhere.yaml").code == 2


@pytest.mark.costly
@pytest.mark.filterwarnings("ignore:torch.quantize_per")
@pytest.mark.parametrize("kind", ["qint8", "per channel", "sparse", "meta", "bits"])
def test_what_torch_does_not_copy_does_not_fit(
    kind: str, net: Callable[..., nn.Module], ckpt: Callable[..., Any]
) -> None:
    """Keys and shapes are those of the destination; only ``Tensor.copy_`` refuses the values."""
    model = net()
    weight = model.state_dict()["head.weight"]
    rows = torch.full((len(weight),), 0.1), torch.zeros(len(weight), dtype=torch.long)
    stored = {
        "qint8": lambda: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        "per channel": lambda: torch.quantize_per_channel(weight, *rows, 0, torch.qint8),
        "sparse": weight.to_sparse,
        "meta": lambda: weight.to("meta"),
        "bits": lambda: torch.zeros(6, 4, dtype=torch.uint8).view(torch.bits8),
    }[kind]()
    state = {**model.state_dict(), "head.weight": stored}
    torch.save(state, "src.pth")
    assert not strict(model, state)
    found = cs.fits("src.pth", "dst.yaml")
    assert not found.fits
    assert list(found.uncopied) == ["head.weight"]
    assert not found.retyped
    assert not cs.fits(state, "dst.yaml").fits
    shown = ckpt("fits", "src.pth", "dst.yaml")
    assert shown.code == 1
    coded = "does not fit as it is stored: 1 weight is quantised; decoded, all 13 tensors fit"
    assert (coded if found.command else "does not fit: 1 that torch does not copy") in shown.out
    if found.command:
        assert kind in ("qint8", "per channel")
        assert ckpt(*found.command[1:]).code == 0
        assert cs.fits(found.command[-1], "dst.yaml").fits
        assert strict(model, load_file(found.command[-1]))
    else:
        assert kind in ("sparse", "meta", "bits")
        assert any("no transplant makes the checkpoint fit" in note for note in found.notes)


# diff of a checkpoint and a configuration.


@pytest.mark.long
def test_diff_with_a_configuration_has_the_same_differences(
    net: Callable[..., nn.Module], ckpt: Callable[..., Any]
) -> None:
    state = net().state_dict()
    del state["norm.weight"]
    state["head.weight"], state["extra"] = torch.ones(7, 4), torch.ones(1)
    state["embed.weight"] = state["embed.weight"].half()
    torch.save(state, "src.pth")
    found, fit = cs.diff("src.pth", "dst.yaml"), cs.fits("src.pth", "dst.yaml")
    assert list(found.added) == list(fit.missing) == ["norm.weight"]
    assert list(found.removed) == list(fit.unexpected) == ["extra"]
    assert [pair.key for pair in found.reshaped] == [pair.key for pair in fit.mismatched]
    assert [pair.key for pair in found.retyped] == [pair.key for pair in fit.retyped] == ["embed.weight"]
    shown = ckpt("diff", "src.pth", "dst.yaml")
    assert shown.code == 1
    assert "--values" not in shown.out
    torch.save(net().state_dict(), "src.pth")
    assert ckpt("diff", "src.pth", "dst.yaml").code == 0
    saved("bert", BERT, "BertForMaskedLM")
    assert not cs.diff("bert", "bert/config.json").differs


def test_the_checkpoint_comes_first(net: Callable[..., nn.Module], ckpt: Callable[..., Any]) -> None:
    torch.save(net().state_dict(), "src.pth")
    refused = ckpt("diff", "dst.yaml", "src.pth")
    assert refused.code == 2
    assert "Name the checkpoint first: ckpt diff src.pth dst.yaml" in refused.err
    both = ckpt("diff", "dst.yaml", "dst.yaml")
    assert (both.code, "are configurations, which have no tensors" in both.err) == (2, True)
    assert "ckpt diff dst.yaml" not in both.err


@pytest.mark.parametrize("option", ["--values", "--renames"])
def test_a_configuration_has_no_values(option: str, net: Callable[..., nn.Module], ckpt: Callable[..., Any]) -> None:
    torch.save(net().state_dict(), "src.pth")
    refused = ckpt("diff", "src.pth", "dst.yaml", option)
    assert refused.code == 2
    assert f"{option} compares values" in refused.err


# Notes on the folders of the checkpoint and of the destination.


def _llama_folder(path: str) -> None:
    """Write a small Llama with a tokeniser of its 64 tokens."""
    size = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 64}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=3, **size, **ids)).save_pretrained(path)
    tokens = ["<pad>", "<s>", "</s>", *(f"t{number}" for number in range(61))]
    added = [{"id": number, "content": tokens[number], "special": True} for number in range(3)]
    model = {"type": "WordLevel", "vocab": {token: number for number, token in enumerate(tokens)}, "unk_token": "t0"}
    Path(path, "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": added, "model": model}))
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    Path(path, "tokenizer_config.json").write_text(json.dumps(named))


def _with_fields(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def _more_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["vocab"] |= {f"more{number}": 64 + number for number in range(4)}
    path.write_text(json.dumps(data))


def _cut_recipe(folder: Path) -> None:
    shutil.move(folder, "was")
    cs.apply(cs.convert("was", dtype="bfloat16"), folder)
    recipe = folder / "ckptsurgeon.json"
    recipe.write_bytes(recipe.read_bytes()[:300])


CONTRADICTIONS = {
    "ids of another tokeniser": (_with_fields(eos_token_id=40, pad_token_id=41), "the ids of another tokeniser"),
    "an id beyond the rows": (_with_fields(eos_token_id=99), "eos_token_id of config.json is 99"),
    "more tokens than rows": (_more_tokens, "68 tokens, but model.embed_tokens.weight has 64 rows"),
    "fewer layers": (_with_fields(num_hidden_layers=2), "model.layers has 3 layers"),
    "settings of other codes": (
        _with_fields(quantization_config={"quant_method": "gptq", "bits": 8}), "no tensor is quantised"
    ),
    "a recipe that is cut short": (_cut_recipe, "is damaged"),
}  # fmt: skip


@pytest.mark.costly
@pytest.mark.each_value
@pytest.mark.parametrize(
    ("verb", "place"),
    [("fits", "src"), ("fits", "dst"), ("fits", "dst/config.json"), ("match", "src"), ("match", "dst")],
)
@pytest.mark.parametrize("change", CONTRADICTIONS)
def test_contradictions_in_either_folder_are_said(change: str, place: str, verb: str, ckpt: Callable[..., Any]) -> None:
    """They are those that ``inspect`` reports, once and with the folder's name."""
    _llama_folder("src")
    _llama_folder("dst")
    changed = Path(place.partition("/")[0])
    apply, said = CONTRADICTIONS[change]
    apply(changed)
    other = "dst" if place == "src" else place
    notes = getattr(cs, verb)("src", other).notes
    own = [note for note in cs.inspect(changed).notes if said in note]
    assert own
    assert [note for note in notes if note in notes_about(str(changed), own)] == notes_about(str(changed), own)
    assert len(set(notes)) == len(notes)
    assert said in ckpt(verb, "src", other).err


@pytest.mark.costly
@pytest.mark.parametrize("verb", ["fits", "match", "diff"])
def test_healthy_folders_have_no_notes(verb: str) -> None:
    _llama_folder("src")
    shutil.copytree("src", "dst")
    assert not getattr(cs, verb)("src", "dst/config.json").notes
    for name in Path("dst").glob("*.safetensors"):
        name.unlink()
    assert not getattr(cs, verb)("src", "dst/config.json").notes


def test_a_destination_without_weights_is_compared_with_the_tensors_of_its_class() -> None:
    _llama_folder("src")
    shutil.copytree("src", "dst")
    _with_fields(eos_token_id=40, pad_token_id=41)(Path("dst"))
    Path("dst/model.safetensors").unlink()
    for notes in (cs.fits("src", "dst").notes, cs.diff("src", "dst/config.json").notes):
        assert any(note.startswith("dst: eos_token_id of config.json is 40") for note in notes)


def test_weights_beside_a_configuration_that_cannot_be_opened_are_said() -> None:
    _llama_folder("src")
    shutil.copytree("src", "dst")
    whole = Path("dst/model.safetensors").read_bytes()
    Path("dst/model.safetensors").write_bytes(whole[:-1000])
    found = cs.fits("src", "dst")
    assert found.strict
    assert any(note.startswith("the weights in dst cannot be opened: ") for note in found.notes)


def test_a_checkpoint_that_does_not_fit_imports_transformers_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the class ignores when it loads is cached, too, even if this process built the class."""
    monkeypatch.setenv("CKPTSURGEON_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CKPTSURGEON_NO_BUILDS", raising=False)
    installed = iter([{"torch": "2", "transformers": "5"}, {}])  # {}: after it is imported, nothing is known
    monkeypatch.setattr(cached_build, "versions", lambda: next(installed))
    write_config("bert/config.json", BERT, "BertForMaskedLM")
    with monkeypatch.context() as patched:
        patched.setattr(cached_build, "versions", dict)
        state = {key: torch.zeros(info.shape) for key, info in load_target("bert/config.json").tensors.items()}
    state["bert.embeddings.position_ids"] = torch.arange(4)[None]
    save_file(state, "old.safetensors")
    first = cs.fits("old.safetensors", "bert/config.json")
    assert first.unexpected
    monkeypatch.setattr(cached_build, "versions", lambda: {"torch": "2", "transformers": "5"})
    monkeypatch.setattr(ignored_keys_module, "_patterns", lambda name: pytest.fail("the class is imported again"))
    monkeypatch.setattr(kind, "_built", lambda *given: pytest.fail("the class is built again"))
    assert cs.fits("old.safetensors", "bert/config.json").to_json() == first.to_json()


def test_a_quant_state_of_bitsandbytes_fits_at_any_length() -> None:
    """It is JSON as bytes, whose length depends on the digits of its numbers."""
    for name, offset in (("a", 0.5), ("b", 0.0321)):
        state = json.dumps({"blocksize": 64, "nested_offset": offset, "shape": [8, 8], "quant_type": "nf4"})
        parts = {
            "": torch.zeros(32, 1, dtype=torch.uint8), ".absmax": torch.ones(1), ".quant_map": torch.zeros(16),
            ".quant_state.bitsandbytes__nf4": torch.frombuffer(bytearray(state.encode()), dtype=torch.uint8),
        }  # fmt: skip
        save_file({f"l.weight{end}": part for end, part in parts.items()}, f"{name}.safetensors")
    assert cs.fits("a.safetensors", "b.safetensors").fits
    short = {**load_file("a.safetensors"), "l.weight.absmax": torch.ones(2)}
    save_file(short, "c.safetensors")
    assert [pair.key for pair in cs.fits("c.safetensors", "b.safetensors").mismatched] == ["l.weight.absmax"]


def test_for_a_live_module_the_call_that_makes_it_fit_is_said() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    torch.save({f"net.{key}": value for key, value in model.state_dict().items()}, "a.pth")
    found = cs.fits("a.pth", model)
    call = "cs.load_into(model, 'a.pth', map=['net='])"
    assert (found.notes, found.command) == ((f"in Python, this makes it fit (4 copied): {call}",), ())
    assert eval(call, {"cs": cs, "model": model}).counts["copied"] == 4
    state = {**model.state_dict(), "1.bias": torch.ones(4)}
    called = ": cs.transplant(source, destination, on_mismatch=['*.bias=init'])"
    assert cs.fits(state, dict(model.state_dict())).notes[-1].endswith(f"(3 copied, 1 kept){called}")
    assert not cs.fits(model, model).notes
