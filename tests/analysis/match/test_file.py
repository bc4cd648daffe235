"""The file that match writes, the command with values, quantised inputs, and inputs that take long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.match.operations.propose import with_operations
from ckptsurgeon.analysis.match.proposal import Proposal
from ckptsurgeon.analysis.match.propose import propose
from ckptsurgeon.tensors.info import TensorInfo

D = 8


@pytest.fixture
def pair() -> dict[str, torch.Tensor]:
    """Write ``fused.safetensors``, with blocks of q, k and v, and ``apart.safetensors``; return the latter."""
    apart = {f"h.{n}.{one}_proj.weight": torch.randn(D, D) for n in range(3) for one in "qkv"}
    apart |= {f"h.{n}.down_proj.weight": torch.randn(D, 5) for n in range(3)}
    fused = {
        f"layers.{n}.qkv_proj.weight": torch.cat([apart[f"h.{n}.{one}_proj.weight"] for one in "qkv"]) for n in range(3)
    }
    fused |= {f"layers.{n}.mlp.down_proj.weight": apart[f"h.{n}.down_proj.weight"] for n in range(3)}
    save_file(fused, "fused.safetensors")
    save_file(apart, "apart.safetensors")
    return apart


def test_the_file_is_a_recipe_and_gives_rules_and_operations_to_other_verbs(ckpt: Any, pair: dict[str, Any]) -> None:
    assert ckpt("match", "fused.safetensors", "apart.safetensors", "-o", "moved.yaml").code == 0
    assert ckpt("apply", "moved.yaml", "-o", "one.safetensors").code == 0
    both = ("--operations", "moved.yaml", "--map-file", "moved.yaml")
    assert ckpt("rename", "fused.safetensors", *both, "-o", "two.safetensors").code == 0
    assert ckpt("transplant", "fused.safetensors", "apart.safetensors", *both, "-o", "three.safetensors").code == 0
    for name in ("one", "two", "three"):
        made = load_file(f"{name}.safetensors")
        assert made.keys() == pair.keys()
        assert all(torch.equal(made[key], tensor) for key, tensor in pair.items())
        assert cs.verify(f"{name}.safetensors").ok


def test_the_file_works_from_another_folder(pair: dict[str, Any]) -> None:
    Path("answers").mkdir()
    cs.match("fused.safetensors", "apart.safetensors", output="answers/moved.yaml")
    assert "source: ../fused.safetensors" in Path("answers/moved.yaml").read_text()
    cs.apply("answers/moved.yaml", "out.safetensors")
    assert load_file("out.safetensors").keys() == pair.keys()


def test_a_file_that_exists_needs_force_and_stays_if_there_is_nothing_to_write(ckpt: Any, pair: dict[str, Any]) -> None:
    Path("moved.yaml").write_text("mine")
    done = ckpt("match", "fused.safetensors", "apart.safetensors", "-o", "moved.yaml")
    assert done.code != 0
    assert "--force" in done.err
    assert Path("moved.yaml").read_text() == "mine"
    assert ckpt("match", "apart.safetensors", "apart.safetensors", "-o", "moved.yaml", "--force").code != 0
    assert Path("moved.yaml").read_text() == "mine"
    assert ckpt("match", "fused.safetensors", "apart.safetensors", "-o", "moved.yaml", "--force").code == 0
    assert Path("moved.yaml").read_text().startswith("# From ckpt match fused.safetensors apart.safetensors")


def test_an_input_is_not_replaced_and_the_name_ends_in_yaml(ckpt: Any, pair: dict[str, Any]) -> None:
    assert "name that ends in .yaml" in ckpt("match", "fused.safetensors", "apart.safetensors", "-o", "a.json").err
    Path("link.yaml").hardlink_to("fused.safetensors")
    done = ckpt("match", "fused.safetensors", "apart.safetensors", "-o", "link.yaml", "--force")
    assert "inputs are never changed" in done.err


def test_wrappers_are_removed_by_the_file_too(pair: dict[str, Any]) -> None:
    wrapped = {f"module.{key}": tensor for key, tensor in load_file("fused.safetensors").items()}
    save_file(wrapped, "wrapped.safetensors")
    for values in (False, True):
        cs.match("wrapped.safetensors", "apart.safetensors", values=values, output="moved.yaml", force=True)
        cs.apply("moved.yaml", "out.safetensors", force=True)
        assert load_file("out.safetensors").keys() == pair.keys()


def test_the_command_shows_operations_their_reason_and_what_is_open(ckpt: Any, pair: dict[str, Any]) -> None:
    done = ckpt("match", "fused.safetensors", "apart.safetensors")
    assert '- {split: "layers.{n}.qkv_proj.weight", into: ["h.{n}.q_proj.weight"' in done.out
    assert "# name, 9 tensors" in done.out
    assert "12 of 12 destination tensors matched" in done.out
    assert "9 by operations" in done.out
    renamed = {key.replace("qkv_proj", "query_key_value"): one for key, one in load_file("fused.safetensors").items()}
    save_file(renamed, "open.safetensors")
    done = ckpt("match", "open.safetensors", "apart.safetensors")
    assert "--values decides" in done.out.replace("\n", " ")
    data = json.loads(ckpt("match", "open.safetensors", "apart.safetensors", "--values", "--json").out)
    assert data["complete"]
    assert set(data["agreed"].values()) == {"bits"}
    assert data["operations"][0]["why"] == "value"


def test_rules_alone_are_an_error_if_operations_are_needed(ckpt: Any, pair: dict[str, Any]) -> None:
    done = ckpt("match", "fused.safetensors", "apart.safetensors", "-q")
    assert done.code != 0
    assert "Use -o FILE to write the rules and the operations" in done.err


def test_a_configuration_has_no_values(ckpt: Any, pair: dict[str, Any]) -> None:
    Path("dst.yaml").write_text("model: {tensors: {a: {shape: [2]}}}")
    assert "has no values to compare" in ckpt("match", "fused.safetensors", "dst.yaml", "--values").err


def test_tensors_in_memory_are_compared(pair: dict[str, Any]) -> None:
    found = cs.match(load_file("fused.safetensors"), pair, values=True)
    assert found.complete
    assert len(found.made) == 9


def test_codes_of_quantised_tensors_are_compared_as_they_are_stored(pair: dict[str, Any]) -> None:
    torch.manual_seed(0)
    save_file({f"h.{n}.proj.weight": torch.randn(256, 256) for n in range(2)}, "plain.safetensors")
    cs.apply(cs.convert("plain.safetensors", quantize="fp8-channel"), "codes.safetensors")
    cs.apply(cs.rename("codes.safetensors", map=["h=layers"]), "moved.safetensors")
    found = cs.match("codes.safetensors", "moved.safetensors", values=True)
    assert found.rules == ("h=layers",)
    assert found.complete
    assert not found.operations
    assert any("is quantised: its codes and scales are compared as stored" in note for note in found.notes)
    found = cs.match("codes.safetensors", "plain.safetensors", values=True)
    assert not found.rules
    assert found.notes[0].startswith("nothing agrees by value")
    assert any("--dequantize" in note for note in found.notes)


def large(number: int, *, sizes: bool) -> Proposal:
    here, there = {}, {}
    for n in range(number):
        here[f"l.{n}.qkv_proj.weight"] = TensorInfo("float32", (3 * D + (n if sizes else 0), D))
        for one in "qkv":
            there[f"m.{n}.{one}_proj.weight"] = TensorInfo("float32", (D + (n if sizes and one == "q" else 0), D))
    return with_operations(propose("a", here, "b", there), here, there)


@pytest.mark.long
def test_ten_thousand_keys_become_one_operation() -> None:
    found = large(2_500, sizes=False)
    assert len(found.operations) == 1
    assert found.complete


@pytest.mark.long
def test_operations_that_would_take_too_long_are_not_proposed() -> None:
    found = large(2_000, sizes=True)
    assert not found.operations
    assert found.notes == ("no operations are proposed: 2000 operations on 2000 tensors would take too long.",)
    assert len(found.missing) == 6_000


def test_rows_of_meta_s_llama_are_reordered_by_the_names_if_the_heads_are_known(ckpt: Any) -> None:
    meta = {
        "tok_embeddings.weight": torch.randn(20, 32),
        "norm.weight": torch.randn(32),
        "output.weight": torch.randn(20, 32),
    }
    shapes = {"attention.wq": (32, 32), "attention.wk": (16, 32), "attention.wv": (16, 32), "attention.wo": (32, 32)}
    shapes |= {"feed_forward.w1": (48, 32), "feed_forward.w2": (32, 48), "feed_forward.w3": (48, 32)}
    shapes |= {"attention_norm": (32,), "ffn_norm": (32,)}
    meta |= {f"layers.{n}.{name}.weight": torch.randn(shape) for n in range(2) for name, shape in shapes.items()}
    Path("meta").mkdir()
    save_file(meta, "meta/model.safetensors")
    Path("meta/params.json").write_text(json.dumps({"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}))
    cs.apply(cs.convert("meta/model.safetensors", layout="transformers"), "hf.safetensors")
    found = cs.match("meta/model.safetensors", "hf.safetensors", output="moved.yaml")
    assert [dict(one.row) for one in found.operations] == [
        {"halves": "layers.{n}.attention.wk.weight", "heads": 2},
        {"halves": "layers.{n}.attention.wq.weight", "heads": 4},
    ]
    assert not any("another order of rows" in note for note in found.notes)
    cs.apply("moved.yaml", "out.safetensors")
    assert not cs.diff("out.safetensors", "hf.safetensors", values=True).differs
    save_file(meta, "alone.safetensors")
    found = cs.match("alone.safetensors", "hf.safetensors")
    assert not found.operations
    assert any("another order of rows" in note for note in found.notes)


@pytest.mark.parametrize("is_back", [False, True])
def test_square_matrices_of_stacked_layers_are_transposed_like_the_others(is_back: bool) -> None:
    """As flax stores layers that it scans: (layers, in, out)."""
    shapes = {"q_proj": (D, D), "k_proj": (3, D), "o_proj": (D, D), "up_proj": (5, D)}
    single = {f"layers.{n}.{name}.weight": torch.randn(shape) for name, shape in shapes.items() for n in range(3)}
    stacked = {
        f"blocks.{name}.kernel": torch.stack([single[f"layers.{n}.{name}.weight"].T for n in range(3)]).contiguous()
        for name in shapes
    }
    save_file(stacked, "scan.safetensors")
    save_file(single, "net.safetensors")
    pair = ("net.safetensors", "scan.safetensors") if is_back else ("scan.safetensors", "net.safetensors")
    assert cs.match(*pair, output="moved.yaml").complete
    cs.apply("moved.yaml", "out.safetensors")
    made, wanted = load_file("out.safetensors"), stacked if is_back else single
    assert made.keys() == wanted.keys()
    assert all(torch.equal(made[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("inner", ["module", "_orig_mod"])
@pytest.mark.parametrize("values", [False, True])
def test_the_file_keeps_a_wrapper_that_the_destination_has(inner: str, values: bool) -> None:
    x, y = torch.randn(6, 4), torch.randn(6, 5)
    save_file({f"module.{inner}.x": x, f"module.{inner}.y": y}, "here.safetensors")
    save_file({"module.x": x.T.contiguous() if values else x, "module.y": y}, "there.safetensors")
    assert cs.match("here.safetensors", "there.safetensors", values=values, output="moved.yaml").complete
    cs.apply("moved.yaml", "out.safetensors")
    made, wanted = load_file("out.safetensors"), load_file("there.safetensors")
    assert made.keys() == wanted.keys()
    assert all(torch.equal(made[key], wanted[key]) for key in wanted)


def test_the_file_names_only_the_options_for_what_it_has(ckpt: Any) -> None:
    weight = torch.randn(6, 4)
    save_file({"a.weight": weight}, "here.safetensors")
    save_file({"a.weight": weight.T.contiguous()}, "there.safetensors")
    found = cs.match("here.safetensors", "there.safetensors", values=True, output="moved.yaml")
    assert found.notes[0].startswith("values were compared: 1 tensor agrees bit for bit")
    head = Path("moved.yaml").read_text().split("verb:")[0]
    assert "1 tensor of the destination has a source." in head
    assert head.endswith("# --operations moved.yaml.\n")
    given = ("here.safetensors", "-o", "out.safetensors", "--operations", "moved.yaml")
    done = ckpt("rename", *given, "--map-file", "moved.yaml")
    assert done.code == 2
    assert " ".join(done.err.split()) == (
        "error: moved.yaml is a recipe without `map`: it has no rules. Leave --map-file out."
    )
    assert ckpt("rename", *given).code == 0


def test_the_file_of_a_source_in_memory_says_that_it_needs_a_source() -> None:
    weight = torch.randn(6, 4)
    cs.match({"a": weight}, {"b": weight.T}, values=True, output="moved.yaml")
    assert "# Add source: PATH and use it with ckpt apply, or in" in Path("moved.yaml").read_text()


def test_a_file_is_not_needed_if_all_names_agree(ckpt: Any, pair: dict[str, Any]) -> None:
    done = ckpt("match", "apart.safetensors", "apart.safetensors", "-o", "moved.yaml")
    assert done.code != 0
    assert "moved.yaml is not written: no rules or operations are needed." in " ".join(done.err.split())
    assert not Path("moved.yaml").exists()


def test_the_file_says_what_it_does_not_make(ckpt: Any, pair: dict[str, Any]) -> None:
    more = {**pair, **{f"h.{n}.extra.weight": torch.zeros(3, n + 2) for n in range(6)}}
    save_file(more, "apart.safetensors")
    save_file({**load_file("fused.safetensors"), "other": torch.zeros(2, 7)}, "fused.safetensors")
    cs.match("fused.safetensors", "apart.safetensors", output="moved.yaml")
    notes = " ".join(ckpt("apply", "moved.yaml", "-o", "out.safetensors").err.split())
    assert (
        "the result lacks 6 of the 18 tensors of apart.safetensors, for which ckpt match proposes no source: "
        "h.0.extra.weight, h.1.extra.weight, h.2.extra.weight, h.3.extra.weight, and 2 more"
    ) in notes
    assert "the result also has 1 tensor of the source that apart.safetensors does not need: other" in notes
    assert len(load_file("out.safetensors")) == 13


def test_a_complete_file_has_no_notes(pair: dict[str, Any]) -> None:
    cs.match("fused.safetensors", "apart.safetensors", output="moved.yaml")
    assert "notes" not in Path("moved.yaml").read_text()
