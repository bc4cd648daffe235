"""Match: operations that names and shapes show; what they leave open is listed, and not guessed."""

from __future__ import annotations

import pytest

import ckptsurgeon as cs
from ckptsurgeon.analysis.match.operations import collapse, fused, stacked
from ckptsurgeon.analysis.match.operations.collapse import collapsed
from ckptsurgeon.analysis.match.operations.propose import with_operations
from ckptsurgeon.analysis.match.operations.steps import JOIN, TURN, Step
from ckptsurgeon.analysis.match.proposal import Proposal
from ckptsurgeon.analysis.match.propose import propose
from ckptsurgeon.planning.operations.operation import parse_operations
from ckptsurgeon.planning.operations.perform import perform
from ckptsurgeon.tensors.info import TensorInfo

Shapes = dict[str, tuple[int, ...]]
D, KV, FF, LAYERS = 64, 16, 96, 4


def layered(shapes: Shapes, layers: int = LAYERS) -> dict[str, TensorInfo]:
    return {key.format(n=n): TensorInfo("float32", shape) for n in range(layers) for key, shape in shapes.items()}


def proposed(source: Shapes, destination: Shapes, layers: int = LAYERS) -> Proposal:
    here, there = layered(source, layers), layered(destination, layers)
    return with_operations(propose("a", here, "b", there), here, there)


def rows(found: Proposal) -> list[dict[str, object]]:
    return [dict(one.row) for one in found.operations]


def both(name: str, *shape: int, bias: int = 0) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": (bias or shape[0],)}


LLAMA: Shapes = {
    "model.layers.{n}.self_attn.q_proj.weight": (D, D), "model.layers.{n}.self_attn.k_proj.weight": (KV, D),
    "model.layers.{n}.self_attn.v_proj.weight": (KV, D), "model.layers.{n}.self_attn.o_proj.weight": (D, D),
    "model.layers.{n}.mlp.gate_proj.weight": (FF, D), "model.layers.{n}.mlp.up_proj.weight": (FF, D),
    "model.layers.{n}.mlp.down_proj.weight": (D, FF),
}  # fmt: skip
PHI_3: Shapes = {
    "layers.{n}.attn.qkv_proj.weight": (D + 2 * KV, D), "layers.{n}.attn.o_proj.weight": (D, D),
    "layers.{n}.mlp.gate_up_proj.weight": (2 * FF, D), "layers.{n}.mlp.down_proj.weight": (D, FF),
}  # fmt: skip


def test_blocks_of_phi_3_are_split_by_their_names() -> None:
    found = proposed(PHI_3, LLAMA)
    at = "model.layers.{n}"
    assert rows(found) == [
        {
            "split": "layers.{n}.attn.qkv_proj.weight",
            "into": [f"{at}.self_attn.{one}_proj.weight" for one in "qkv"],
            "sizes": [D, KV, KV],
        },
        {
            "split": "layers.{n}.mlp.gate_up_proj.weight",
            "into": [f"{at}.mlp.{one}_proj.weight" for one in ("gate", "up")],
        },
    ]
    assert [one.why for one in found.operations] == ["name", "name"]
    assert found.complete
    assert found.made["model.layers.2.self_attn.k_proj.weight"] == ("layers.2.attn.qkv_proj.weight",)


def test_separate_projections_are_fused_in_the_order_of_the_name() -> None:
    found = proposed(LLAMA, PHI_3)
    assert [row["into"] for row in rows(found)] == [
        "layers.{n}.attn.qkv_proj.weight",
        "layers.{n}.mlp.gate_up_proj.weight",
    ]
    assert rows(found)[0]["concat"] == [f"model.layers.{{n}}.self_attn.{one}_proj.weight" for one in "qkv"]
    assert found.complete


GPT_2: Shapes = {
    "h.{n}.attn.c_attn.weight": (D, 3 * D), "h.{n}.attn.c_attn.bias": (3 * D,), "h.{n}.attn.c_proj.weight": (D, D),
    "h.{n}.mlp.c_fc.weight": (D, FF), "h.{n}.mlp.c_proj.weight": (FF, D),
}  # fmt: skip
SEPARATE: Shapes = {
    **{key: size for one in "qkv" for key, size in both(f"layers.{{n}}.attn.{one}_proj", D, D).items()},
    "layers.{n}.attn.out_proj.weight": (D, D), "layers.{n}.mlp.fc1.weight": (FF, D), "layers.{n}.mlp.fc2.weight": (D, FF),
}  # fmt: skip


def test_conv1d_is_transposed_and_the_module_is_split_as_one() -> None:
    found = proposed(GPT_2, SEPARATE)
    assert rows(found)[-1] == {
        "split": "h.{n}.attn.c_attn", "into": [f"layers.{{n}}.attn.{one}_proj" for one in "qkv"]
    }  # fmt: skip
    turned = {
        row["transpose"]: one.why for row, one in zip(rows(found), found.operations, strict=True) if "transpose" in row
    }
    assert turned == {
        "h.{n}.attn.c_attn.weight": "name", "h.{n}.attn.c_proj.weight": "transposed",
        "h.{n}.mlp.c_fc.weight": "transposed", "h.{n}.mlp.c_proj.weight": "transposed",
    }  # fmt: skip
    assert found.complete
    assert not found.notes


def test_back_to_conv1d() -> None:
    found = proposed(SEPARATE, GPT_2)
    assert rows(found)[-2:] == [
        {"concat": [f"layers.{{n}}.attn.{one}_proj" for one in "qkv"], "into": "h.{n}.attn.c_attn"},
        {"transpose": "h.{n}.attn.c_attn.weight"},
    ]
    assert found.complete


def test_square_parts_are_open_if_no_other_matrix_shows_whether_they_are_transposed() -> None:
    alone = {key: shape for key, shape in GPT_2.items() if "c_attn.weight" in key}
    found = proposed(
        alone, {key: shape for key, shape in SEPARATE.items() if "_proj.weight" in key and "out" not in key}
    )
    assert not found.operations
    assert [one.why for one in found.open] == ["the parts may be transposed"]


@pytest.mark.parametrize("name", ["query_key_value", "linear_qkv", "wqkv"])
def test_parts_that_may_be_grouped_by_heads_are_open(name: str) -> None:
    fused = both(f"h.{{n}}.attention.{name}", 3 * D, D)
    found = proposed(fused, {key: shape for key, shape in SEPARATE.items() if "attn" in key and "out" not in key})
    assert not found.operations
    assert [(one.first, len(one.second)) for one in found.open] == [((key,), 3) for key in fused]
    assert "grouped by heads" in found.open[0].why
    assert found.undecided == 6 * LAYERS
    assert not found.missing
    assert not found.complete


def test_parts_without_known_names_are_open() -> None:
    found = proposed({"h.{n}.x.weight": (3 * D, D)}, {f"h.{{n}}.y.{one}.weight": (D, D) for one in "abc"})
    assert [(one.first, one.second, one.why) for one in found.open] == [
        (("h.{n}.x.weight",), tuple(f"h.{{n}}.y.{one}.weight" for one in "abc"), "the order of the parts is not known")
    ]


EXPERTS: Shapes = {
    f"layers.{{n}}.moe.experts.{e}.{one}.weight": (D, FF) if one == "w2" else (FF, D) for e in range(4) for one in ("w1", "w2", "w3")
}  # fmt: skip
STACKS: Shapes = {
    f"model.layers.{{n}}.mlp.experts.{one}_proj": (4, D, FF) if one == "down" else (4, FF, D) for one in ("gate", "up", "down")
}  # fmt: skip


def test_experts_are_stacked_by_their_names() -> None:
    found = proposed(EXPERTS, STACKS)
    assert {(row["stack"], row["into"]) for row in rows(found)} == {
        (f"layers.{{n}}.moe.experts.{{m}}.{old}.weight", f"model.layers.{{n}}.mlp.experts.{new}_proj")
        for old, new in (("w1", "gate"), ("w2", "down"), ("w3", "up"))
    }
    assert found.complete


def test_stacks_are_taken_apart() -> None:
    found = proposed(STACKS, EXPERTS)
    assert rows(found)[0]["into"] == "layers.{n}.moe.experts.{i}.w1.weight"
    assert len(found.operations) == 3
    assert found.complete
    assert found.rules == ()


def test_stacks_of_transposed_matrices() -> None:
    turned = {key: (shape[0], *shape[:0:-1]) for key, shape in STACKS.items()}
    found = proposed(EXPERTS, turned)
    assert [next(iter(row)) for row in rows(found)] == ["transpose"] * 3 + ["stack"] * 3
    assert found.complete


def test_stacks_that_nothing_tells_apart_are_open() -> None:
    singles: Shapes = {f"h.{{n}}.e.{e}.{one}": (D, D) for e in range(4) for one in "ab"}
    found = proposed(singles, {f"g.{{n}}.{one}": (4, D, D) for one in "xy"})
    assert not found.operations
    assert [one.second for one in found.open] == [("g.{n}.x", "g.{n}.y")]


def test_layers_are_stacked_as_in_a_distributed_checkpoint_of_megatron() -> None:
    found = proposed({"h.{n}.up.weight": (FF, D)}, {"h.up.weight": (LAYERS, FF, D)})
    assert rows(found) == [{"stack": "h.{n}.up.weight", "into": "h.up.weight"}]


def test_a_1x1_convolution_is_a_linear_layer() -> None:
    conv, linear = both("a.conv", FF, D, 1), both("a.proj", FF, D)
    assert rows(proposed(conv, linear)) == [{"reshape": "a.conv.weight", "shape": [FF, D]}]
    assert rows(proposed(linear, conv)) == [{"reshape": "a.proj.weight", "shape": [FF, D, 1]}]


def test_layers_of_two_kinds_get_patterns_that_match_only_theirs() -> None:
    def hybrid(names: dict[int, Shapes]) -> dict[str, TensorInfo]:
        return {
            key.format(n=n): TensorInfo("float32", shape)
            for n, shapes in names.items()
            for key, shape in shapes.items()
        }

    wide = {"layers.{n}.attn.qkv_proj.weight": (3 * D, D)}
    here = hybrid({n: wide if n % 2 else {"layers.{n}.attn.qkv_proj.weight": (D + 2 * KV, D)} for n in range(6)})
    there = {
        f"h.{n}.{one}_proj.weight": TensorInfo("float32", (D if one == "q" or n % 2 else KV, D))
        for n in range(6)
        for one in "qkv"
    }
    found = with_operations(propose("a", here, "b", there), here, there)
    assert {(str(row["split"]), str(row.get("sizes"))) for row in rows(found)} == {
        (r"re:layers\.(?P<n>0|2|4)\.attn\.qkv_proj\.weight", f"{[D, KV, KV]}"),
        (r"re:layers\.(?P<n>1|3|5)\.attn\.qkv_proj\.weight", "None"),
    }
    made = perform([here], parse_operations(rows(found)))[0].tensors
    assert {key: info.shape for key, info in made.items()} == {key: info.shape for key, info in there.items()}


def test_numbers_of_layers_may_differ_by_a_constant() -> None:
    steps = [Step("split", (f"h.{n}.w",), (f"l.{n + 2}.a", f"l.{n + 2}.b"), JOIN) for n in range(3)]
    assert [row.row for row in collapsed(steps, [key for step in steps for key in step.inputs])] == [
        {"split": "h.{n}.w", "into": ["l.{n+2}.a", "l.{n+2}.b"]}
    ]


def test_a_pattern_that_would_match_a_module_is_exact() -> None:
    steps = [Step("transpose", (key,), (key,), TURN) for key in ("a.0", "a.1")]
    (row,) = collapsed(steps, ["a.0", "a.1", "a.1.b"])
    assert row.row == {"transpose": r"re:a\.(?P<n>0|1)"}


def alternating(number: int, name: str) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
    """A matrix in each layer, of which every second is stored transposed in the first model."""
    here = {f"l.{n}.fc.weight": TensorInfo("float32", (FF, D) if n % 2 else (D, FF)) for n in range(number)}
    return here, {name.format(n=n): TensorInfo("float32", (FF, D)) for n in range(number)}


def test_every_second_layer_of_many_is_transposed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collapse, "EXPRESSION", 100)
    here, there = alternating(90, "l.{n}.fc.weight")
    found = with_operations(propose("a", here, "b", there), here, there)
    assert [next(iter(row)) for row in rows(found)] == ["transpose"] * 5
    assert found.complete
    made = perform([here], parse_operations(rows(found)))[0].tensors
    assert {key: info.shape for key, info in made.items()} == {key: info.shape for key, info in there.items()}


def test_every_second_layer_is_transposed_under_another_name() -> None:
    here, there = alternating(6, "m.{n}.dense.weight")
    found = with_operations(propose("a", here, "b", there), here, there)
    assert rows(found) == [{"transpose": r"re:l\.(?P<n>0|2|4)\.fc\.weight"}]
    assert len(found.rules) == 1
    assert found.complete


def test_two_matrices_of_a_layer_are_not_told_apart_by_transposes_of_some_layers() -> None:
    here, _ = alternating(6, "")
    here |= {key.replace("fc", "xy"): TensorInfo("float32", info.shape[::-1]) for key, info in here.items()}
    there = {f"m.{n}.{name}.weight": TensorInfo("float32", (FF, D)) for n in range(6) for name in ("a", "b")}
    found = with_operations(propose("a", here, "b", there), here, there)
    assert not found.operations
    assert not found.complete


def test_matrices_without_a_word_in_common_are_not_transposed_because_their_sizes_are_exchanged() -> None:
    found = proposed({"l.{n}.first.weight": (FF, D)}, {"m.{n}.down.weight": (D, FF)})
    assert not found.operations
    assert len(found.missing) == LAYERS


def many_wholes(number: int) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
    here = {f"w{n:03}.qkv_proj.weight": TensorInfo("float32", (3 * D + n, D)) for n in range(number)}
    there = {
        f"w{n:03}.{one}_proj.weight": TensorInfo("float32", (D + (n if one == "q" else 0), D))
        for n in range(number)
        for one in "qkv"
    }
    return here, there


def test_many_fused_tensors_outside_layers_are_split() -> None:
    here, there = many_wholes(70)
    assert with_operations(propose("a", here, "b", there), here, there).complete


def test_fused_tensors_and_stacks_that_are_too_many_to_compare_get_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "MOST", 5_000)
    here, there = many_wholes(71)
    for found in (propose("a", here, "b", there), propose("b", there, "a", here)):
        sides = (here, there) if found.first == "a" else (there, here)
        (note,) = with_operations(found, *sides).notes
        assert note.endswith("too many tensors have the same layer numbers: 71 tensors that may be fused or stacked")
    monkeypatch.setattr(stacked, "MOST", 1)
    here, there = layered(EXPERTS), layered(STACKS)
    note = with_operations(propose("a", here, "b", there), here, there).notes[-1]
    assert note.endswith(f"{3 * LAYERS} tensors that may be fused or stacked")


@pytest.mark.long
def test_a_large_module_whose_tensors_have_no_parts_is_searched_once() -> None:
    here = {f"t{n}": TensorInfo("float32", (n + 2, 3)) for n in range(1_500)}
    there = {f"u{n}": TensorInfo("float32", (n + 2, 4)) for n in range(1_500)}
    found = with_operations(propose("a", here, "b", there), here, there)
    assert not found.operations
    assert len(found.missing) + found.undecided == 1_500


def test_names_with_special_characters_are_literal() -> None:
    shapes: Shapes = {"layers.{n}.a*b.qkv_proj.weight": (3 * D, D)}
    found = proposed(shapes, {f"h.{{n}}.c*.{one}_proj.weight": (D, D) for one in "qkv"})
    assert rows(found)[0]["split"] == r"layers.{n}.a\*b.qkv_proj.weight"
    made = perform([layered(shapes)], parse_operations(rows(found)))[0].tensors
    assert "h.3.c*.v_proj.weight" in made


def test_the_search_for_patterns_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collapse, "TRIES", 5)
    keys = [f"h.{n}.w" for n in range(6)]
    (row,) = collapsed([Step("transpose", (key,), (key,), TURN) for key in keys], keys)
    assert row.row == {"transpose": r"re:h\.(?P<n>0|1|2|3|4|5)\.w"}


def test_a_result_may_have_the_name_of_another_tensor() -> None:
    here = {"x.qkv_proj.weight": TensorInfo("float32", (3 * D, D)), "x.q_proj.weight": TensorInfo("float32", (5, 5))}
    there = {f"x.{one}_proj.weight": TensorInfo("float32", (D, D)) for one in "qkv"}
    there["y.other.weight"] = TensorInfo("float32", (5, 5))
    found = with_operations(propose("a", here, "b", there), here, there)
    assert found.operations == () or "new.x.q_proj.weight" in found.operations[0].row["into"]


def test_json_has_operations_and_what_is_open() -> None:
    data = proposed(PHI_3, LLAMA).to_json()
    assert data["operations"][0]["operation"]["sizes"] == [D, KV, KV]
    assert data["operations"][0]["tensors"] == 3 * LAYERS
    assert data["made"]["model.layers.0.mlp.up_proj.weight"] == ["layers.0.mlp.gate_up_proj.weight"]
    data = proposed(
        both("h.{n}.query_key_value", 3 * D, D), {f"h.{{n}}.{one}_proj.weight": (D, D) for one in "qkv"}
    ).to_json()
    assert data["open"][0]["from"] == ["h.{n}.query_key_value.weight"]
    assert cs.Proposal is Proposal
