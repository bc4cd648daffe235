"""Rule operations: what torch makes of the same tensors, bit for bit, through every door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import CheckpointError, ConfigError, FormatError, PatternError, PlanError
from ckptsurgeon.planning.operations import perform

from ...helpers.depth import examples_of

Tensors = dict[str, torch.Tensor]
GPT: Tensors = {
    **{f"h.{n}.attn.c_attn.weight": torch.randn(8, 24) for n in range(3)},
    **{f"h.{n}.attn.c_attn.bias": torch.randn(24) for n in range(3)},
    **{f"h.{n}.experts.{e}.w1": torch.randn(3, 5) for n in range(2) for e in range(12)},
    "head.weight": torch.randn(10, 8),
    "steps": torch.tensor(7),
}
Q, K, V = "layers.{n}.q", "layers.{n}.k", "layers.{n}.v"
FUSED = "h.{n}.attn.c_attn"


@pytest.fixture(autouse=True)
def gpt() -> None:
    torch.save(GPT, "gpt.pth")


def renamed(operations: list[dict[str, Any]], source: str = "gpt.pth", **options: Any) -> Tensors:
    """Rename a checkpoint with operations, verify what was written, and return it."""
    cs.apply(cs.rename(source, operations=operations, **options), "out.safetensors", force=True)
    assert cs.verify("out.safetensors").ok
    return load_file("out.safetensors")


def test_a_fused_projection_is_split_and_joined_again() -> None:
    made = renamed([{"transpose": f"{FUSED}.weight"}, {"split": FUSED, "into": [Q, K, V]}])
    assert torch.equal(made["layers.1.k.weight"], GPT["h.1.attn.c_attn.weight"].T[8:16])
    assert torch.equal(made["layers.1.v.bias"], GPT["h.1.attn.c_attn.bias"][16:])
    save_file(made, "split.safetensors")
    back = renamed([{"concat": [Q, K, V], "into": FUSED}, {"transpose": f"{FUSED}.weight"}], "split.safetensors")
    assert back.keys() == GPT.keys()
    assert all(torch.equal(back[key], value) for key, value in GPT.items())


def test_heads_that_interleave_their_projections() -> None:
    """GPT-NeoX: (heads, 3, head size) in one dimension."""
    heads, size, width = 4, 6, 10
    fused = torch.randn(heads * 3 * size, width)
    torch.save({"qkv": fused}, "neox.pth")
    names = ["q", "k", "v"]
    made = renamed(
        [
            {"reshape": "qkv", "shape": [heads, 3, size, width]},
            {"split": "qkv", "into": names, "dim": 1},
            *({"reshape": name, "shape": [heads * size, -1]} for name in names),
        ],
        "neox.pth",
    )
    parts = fused.reshape(heads, 3, size, width)
    assert all(torch.equal(made[name], parts[:, i].reshape(-1, width)) for i, name in enumerate(names))


def test_rotary_halves_are_interleaved() -> None:
    """Meta's LLaMA against Hugging Face's: rows of a head in another order."""
    heads, size, width = 2, 8, 5
    weight = torch.randn(heads * size, width)
    torch.save({"q": weight}, "llama.pth")
    operations = [
        {"reshape": "q", "shape": [heads, size // 2, 2, width]},
        {"transpose": "q", "dims": [1, 2]},
        {"reshape": "q", "shape": [-1, width]},
    ]
    wanted = weight.view(heads, size // 2, 2, width).transpose(1, 2).reshape(heads * size, width)
    assert torch.equal(renamed(operations, "llama.pth")["q"], wanted)


@pytest.mark.parametrize("shape", [(16, 5), (16,), (16, 3, 2)])
def test_halves_and_pairs_reorder_the_rows_of_each_head(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    torch.save({"l.0.q.weight": weight}, "pairs.pth")
    made = renamed([{"halves": "l.{n}.q", "heads": 2}], "pairs.pth")
    order = [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]
    assert torch.equal(made["l.0.q.weight"], weight[order])
    save_file(made, "halves.safetensors")
    back = renamed([{"pairs": "l.{n}.q", "heads": 2}], "halves.safetensors")
    assert torch.equal(back["l.0.q.weight"], weight)


@pytest.mark.parametrize("heads", [3, 5, 16])
def test_rows_that_are_not_heads_of_an_even_size_are_not_reordered(heads: int) -> None:
    torch.save({"q": torch.zeros(16, 5), "scalar": torch.tensor(1.0)}, "q.pth")
    with pytest.raises(PlanError, match="q has 16 rows, not") as caught:
        cs.rename("q.pth", operations=[{"halves": "q", "heads": heads}])
    assert "num_attention_heads" in caught.value.hint
    with pytest.raises(PlanError, match="scalar has 0 rows"):
        cs.rename("q.pth", operations=[{"pairs": "scalar", "heads": heads}])
    for wrong in (0, -1, "2", 1.5, True):
        with pytest.raises(ConfigError, match="the number of heads"):
            cs.rename("q.pth", operations=[{"halves": "q", "heads": wrong}])


def test_experts_are_stacked_by_number_and_unstacked() -> None:
    made = renamed([{"stack": "h.{n}.experts.{e}.w1", "into": "h.{n}.experts.w1"}])
    wanted = torch.stack([GPT[f"h.1.experts.{e}.w1"] for e in range(12)])
    assert torch.equal(made["h.1.experts.w1"], wanted)
    save_file(made, "stacked.safetensors")
    back = renamed([{"unstack": "h.{n}.experts.w1", "into": "h.{n}.experts.{i}.w1"}], "stacked.safetensors")
    assert all(torch.equal(back[key], value) for key, value in GPT.items())
    shifted = renamed([{"unstack": "h.{n}.experts.w1", "into": "h.{n}.e{i+1}", "dim": -1}], "stacked.safetensors")
    assert torch.equal(shifted["h.0.e5"], made["h.0.experts.w1"][..., 4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64])
def test_scaling_rounds_once(dtype: torch.dtype) -> None:
    values = torch.randn(1000).to(dtype)
    save_file({"w": values}, "w.safetensors")
    wide = torch.complex128 if dtype.is_complex else torch.float64
    single = torch.complex64 if dtype.is_complex else torch.float32
    exact = values.to(wide) * 0.3
    wanted = exact if dtype == torch.float64 else exact.to(single).to(dtype)
    assert torch.equal(renamed([{"scale": "w", "by": 0.3}], "w.safetensors")["w"], wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_a_shift_is_computed_in_float32_or_wider(dtype: torch.dtype) -> None:
    values = torch.randn(1000).to(dtype)
    save_file({"w": values}, "w.safetensors")
    wanted = (values.double() - 0.3).to(torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(renamed([{"shift": "w", "by": -0.3}], "w.safetensors")["w"], wanted)
    made = cs.rename("w.safetensors", operations=[{"shift": "w", "by": -0.3}]).inputs.sources[0]  # type: ignore[attr-defined]
    assert torch.equal(made.tensor("w"), wanted)


def test_blocks_take_the_matrices_that_match() -> None:
    """Powers of two are exact, and those of a row are one block of 32 and its scale."""
    save_file({"w": torch.full((2, 32), 0.5), "v": torch.ones(32)}, "w.safetensors")
    plan = cs.rename("w.safetensors", operations=[{"blocks": "*", "to": "q4_0"}])
    made = plan.inputs.sources[0]  # type: ignore[attr-defined]
    scale = torch.tensor([-0.0625]).half().view(torch.uint8).tolist()
    rounded = made.tensor("w")
    assert rounded.tolist() == [[*scale, *[0] * 16]] * 2
    cs.apply(plan, "out.gguf")
    with cs.open_checkpoint("out.gguf") as found:
        assert torch.equal(found.tensor("w"), rounded)
        assert found["v"].dtype == "float32"


def test_a_constant_is_a_new_tensor_that_later_operations_see() -> None:
    rows = [{"constant": "steps.scale", "values": [1, 0.1, -3e38, 0]}, {"reshape": "steps.scale", "shape": [2, 2]}]
    wanted = torch.tensor([[1, 0.1], [-3e38, 0]])
    plan = cs.rename("gpt.pth", operations=rows, map=["steps.scale=factors"])
    step = plan.steps[-1]
    assert (step.key, step.kind, step.made_of) == ("factors", "derived", ())
    assert len(plan.steps) == 33
    assert torch.equal(plan.inputs.sources[0].tensor("steps.scale"), wanted)  # type: ignore[attr-defined]
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    cs.apply("plan.json", "out.safetensors")
    assert torch.equal(load_file("out.safetensors")["factors"], wanted)
    assert cs.verify("out.safetensors").ok


def test_a_constant_is_a_tensor_of_the_first_source() -> None:
    torch.save({"a": torch.ones(2)}, "a.pth")
    save_file({"a": torch.zeros(2), "c": torch.zeros(3)}, "dst.safetensors")
    rows = [{"constant": "c", "values": [1, 2, 3]}]
    cs.apply(cs.transplant(["a.pth", "a.pth"], "dst.safetensors", operations=rows, on_mismatch="slice"), "out.pth")
    assert torch.load("out.pth")["c"].tolist() == [1, 2, 3]
    assert cs.verify("out.pth").ok


@pytest.mark.costly
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64])
def test_a_sum_is_rounded_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parts = {f"w.{i}": torch.randn(40, 7, dtype=dtype) for i in range(3)}
    torch.save(parts, "parts.pth")
    rows = [{"add": "w.{n}", "into": "sum"}]
    wide = torch.complex128 if dtype.is_complex else torch.float64
    expected = sum(part.to(wide) for part in parts.values()).to(dtype)  # type: ignore[union-attr]
    assert torch.equal(renamed(rows, "parts.pth")["sum"], expected) or dtype.is_complex
    cs.apply(cs.rename("parts.pth", operations=rows), "sum.pth")
    assert torch.equal(torch.load("sum.pth")["sum"], expected)
    made = cs.rename("parts.pth", operations=rows).inputs.sources[0]  # type: ignore[attr-defined]
    assert torch.equal(made.tensor("sum"), expected)


def test_a_negative_zero_is_kept_by_a_sum_of_negative_zeros() -> None:
    zeros = {"a": torch.tensor([-0.0, -0.0, 0.0]), "b": torch.tensor([-0.0, 0.0, -0.0])}
    torch.save(zeros, "zeros.pth")
    rows = [{"add": ["a", "b"], "into": "c"}]
    made = cs.rename("zeros.pth", operations=rows).inputs.sources[0]  # type: ignore[attr-defined]
    for found in (renamed(rows, "zeros.pth")["c"], made.tensor("c")):
        assert torch.signbit(found).tolist() == [True, False, False]


def test_a_sum_that_becomes_infinite_is_an_error() -> None:
    torch.save({"a": torch.full((2,), 3e38), "b": torch.full((2,), 3e38)}, "large.pth")
    with pytest.raises(PlanError, match="2 values of the sum would exceed the range of float32"):
        cs.apply(cs.rename("large.pth", operations=[{"add": ["a", "b"], "into": "c"}]), "out.safetensors")


def test_a_copy_has_several_names_and_each_goes_its_own_way() -> None:
    made = renamed([{"copy": "head.weight", "into": ["a.weight", "b.weight"]}, {"scale": "b", "by": 2}])
    assert torch.equal(made["a.weight"], GPT["head.weight"])
    assert torch.equal(made["b.weight"], 2 * GPT["head.weight"])
    assert "head.weight" not in made
    one = renamed([{"copy": "h.{n}.attn.c_attn.bias", "into": ["x.{n}"]}])
    assert torch.equal(one["x.2"], GPT["h.2.attn.c_attn.bias"])


def test_splits_are_copied_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A split of the first dimension lies in the file as it is, and is never computed."""
    from ckptsurgeon.engine.compute import compute

    monkeypatch.setattr(compute, "computed_block", None)
    plan = cs.rename("gpt.pth", operations=[{"split": "head.weight", "into": ["a", "b"], "sizes": [7, 3]}])
    cs.apply(plan, "out.safetensors")
    assert torch.equal(load_file("out.safetensors")["b"], GPT["head.weight"][7:])


def test_a_plan_says_what_was_made_of_what_and_survives_json(ckpt: Any) -> None:
    operations = [{"split": "h.{n}.attn.c_attn.weight", "into": [Q, K, V], "dim": 1}, {"scale": "layers.*.q", "by": 2}]
    plan = cs.rename("gpt.pth", operations=operations, map=["layers=blocks"])
    step = next(step for step in plan.steps if step.key == "blocks.2.q")
    assert (step.kind, step.operation, step.made_of) == ("derived", "scale layers.*.q", ("h.2.attn.c_attn.weight",))
    assert plan.counts == {"copied": 29, "derived": 9}
    assert cs.Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    Path("p.json").write_text(json.dumps(plan.to_json()))
    assert ckpt("apply", "p.json", "-o", "a.safetensors").code == 0
    cs.apply(plan, "b.safetensors")
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    assert ckpt("verify", "a.safetensors", "--plan", "p.json").code == 0


def test_a_changed_value_is_found_in_what_was_made() -> None:
    cs.apply(cs.rename("gpt.pth", operations=[{"scale": "head.weight", "by": 2}]), "out.safetensors")
    data = bytearray(Path("out.safetensors").read_bytes())
    data[-8] ^= 1
    Path("out.safetensors").write_bytes(data)
    assert not cs.verify("out.safetensors").ok


def test_a_transplant_of_operated_sources() -> None:
    """Operations come first: include, exclude, rules and policies see what they leave."""
    Path("dst.yaml").write_text(
        yaml.safe_dump({"model": {"tensors": {
            "net.q.weight": {"shape": [8, 8]}, "net.k.weight": {"shape": [4, 8]}, "net.v.weight": {"shape": [8, 8]},
            "head.weight": {"shape": [10, 8]},
        }}})
    )  # fmt: skip
    torch.save({"head.weight": torch.ones(10, 8)}, "head.pth")
    plan = cs.transplant(
        ["gpt.pth", "head.pth"], "dst.yaml", include=["qkv", "head"], map=["qkv=net"],
        operations=[
            {"transpose": "h.0.attn.c_attn.weight"},
            {"split": "h.0.attn.c_attn.weight", "into": ["qkv.q.weight", "qkv.k.weight", "qkv.v.weight"]},
        ],
        on_mismatch={"net.k": "slice"},
    )  # fmt: skip
    assert plan.counts == {"copied": 1, "derived": 2, "resized": 1}
    cs.apply(plan, "out.safetensors")
    assert cs.verify("out.safetensors").ok
    made = load_file("out.safetensors")
    fused = GPT["h.0.attn.c_attn.weight"].T
    assert torch.equal(made["net.k.weight"], fused[8:12])
    assert torch.equal(made["net.v.weight"], fused[16:])
    assert torch.equal(made["head.weight"], torch.ones(10, 8))


def test_ties_survive_operations_that_see_both_alike() -> None:
    weight = torch.randn(4, 6)
    torch.save({"embed": weight, "out": weight, "other": torch.ones(1)}, "tied.pth")
    plan = cs.rename("tied.pth", operations=[{"transpose": "{embed,out}"}])
    assert [step.tied_to for step in plan.steps] == ["", "embed", ""]


@pytest.mark.costly
@pytest.mark.parametrize("verb", ["rename", "transplant"])
def test_flags_a_file_and_a_recipe_give_one_plan(verb: str, ckpt: Any) -> None:
    operations = [{"split": "head.weight", "into": ["head.a", "head.b"], "dim": 0}]
    save_file({"head.a": torch.zeros(5, 8), "head.b": torch.zeros(5, 8)}, "dst.safetensors")
    Path("ops.yaml").write_text(yaml.safe_dump(operations))
    Path("named.yaml").write_text(yaml.safe_dump({"operations": operations}))
    more = {"destination": "dst.safetensors"} if verb == "transplant" else {}
    plan = getattr(cs, verb)("gpt.pth", *more.values(), operations=operations)
    assert getattr(cs, verb)("gpt.pth", *more.values(), operations="named.yaml").to_json() == plan.to_json()
    for form in (operations, "ops.yaml"):
        Path("recipe.yaml").write_text(yaml.safe_dump({"verb": verb, "source": "gpt.pth", **more, "operations": form}))
        assert json.loads(ckpt("apply", "recipe.yaml", "-n", "--json").out) == plan.to_json()
    told = ckpt(verb, "gpt.pth", *more.values(), "--operations", "ops.yaml", "-n", "--json")
    assert json.loads(told.out) == plan.to_json()
    assert "--operations" in ckpt(verb, "--help").out


def test_the_file_of_operations_is_never_an_output() -> None:
    Path("ops.yaml").write_text("- {scale: head.weight, by: 2}")
    plan = cs.rename("gpt.pth", operations="ops.yaml")
    with pytest.raises(CheckpointError, match="is an input"):
        cs.apply(plan, "ops.yaml", to="pth", force=True)
    assert "scale" in Path("ops.yaml").read_text()


WRONG: list[tuple[Any, type[CheckpointError], str]] = [
    ("x: 1", ConfigError, "has no operations"),
    ([3], ConfigError, "it has no operation. Use one of split"),
    ([{"splt": "head"}], ConfigError, "Did you mean split?"),
    ([{"split": "a", "stack": "b"}], ConfigError, "it has several operations"),
    ([{"split": "head.weight", "into": ["a"]}], ConfigError, "into has one name, but a split makes two tensors"),
    ([{"split": "head.weight"}], ConfigError, "needs the field into"),
    ([{"split": "head.weight", "into": ["a", "b"], "dmi": 1}], ConfigError, "has no field dmi. Did you mean dim?"),
    ([{"zero": "head.weight", "dim": 0}], ConfigError, "has no field dim. It has no fields."),
    ([{"split": "head.weight", "into": ["a", "b"], "dim": True}], ConfigError, "dim is True"),
    ([{"split": ["head.weight"], "into": ["a", "b"]}], ConfigError, "not a pattern"),
    ([{"scale": "head.weight", "by": float("nan")}], ConfigError, "not a finite number"),
    ([{"scale": "head.weight", "by": 1 << 2000}], ConfigError, "not a finite number"),
    ([{"unstack": "head.weight", "into": "x"}], ConfigError, "a name with {i} in it"),
    ([{"split": "re:(", "into": ["a", "b"]}], PatternError, "not a regular expression"),
    ([{"split": "head.weight", "into": ["a", ""]}], PatternError, "a name is empty"),
    ([{"split": "head.weight", "into": ["a.{n}", "b"]}], PatternError, "which the pattern does not capture"),
    ([{"split": "haed.weight", "into": ["a", "b"]}], PatternError, "matches none of the 32 source keys"),
    ([{"split": "head.weight", "into": ["a", "b", "c"]}], PlanError, "which is not a multiple of 3"),
    ([{"split": "head.weight", "into": ["a", "b"], "sizes": [3, 3]}], PlanError, "are 2 parts with the sum 6"),
    ([{"split": "head.weight", "into": ["a", "b"], "sizes": [-1, 11]}], PlanError, "needs 2 parts with the sum 10, and no size below 0"),
    ([{"split": "head.weight", "into": ["a", "b"], "dim": 2}], PlanError, "no dimension 2"),
    ([{"split": "head.weight", "into": ["a", "a"]}], PlanError, "two tensors that are made from head.weight would have the name a"),
    ([{"split": "head.weight", "into": ["a", "steps"]}], PlanError, "head.weight and steps both become steps"),
    ([{"split": "steps", "into": ["a", "b"]}], PlanError, "has 0 dimensions"),
    ([{"transpose": "h.*.attn"}], PlanError, "has 1 dimension, not two"),
    ([{"permute": "head.weight", "dims": [0, -2]}], PlanError, "do not list each"),
    ([{"reshape": "head.weight", "shape": [-1, -1]}], PlanError, "does not fit"),
    ([{"reshape": "head.weight", "shape": [0, -1]}], PlanError, "does not fit"),
    ([{"scale": "steps", "by": 2}], PlanError, "only floating-point tensors"),
    ([{"shift": "steps", "by": 2}], PlanError, "only real floating-point tensors"),
    ([{"blocks": "head.weight", "to": "q4_0"}], PlanError, "no matching tensor is a floating-point matrix"),
    ([{"blocks": "head.weight", "to": "iq4_xs"}], ConfigError, "one of q8_0, q6_k, q5_k"),
    ([{"constant": "head.weight", "values": [1]}], PlanError, "another tensor has this name"),
    ([{"constant": "", "values": [1]}], ConfigError, "constant is '', not a name"),
    ([{"constant": "a", "values": []}], ConfigError, "not a list of 1 to 10000 numbers"),
    ([{"constant": "a", "values": [4e38]}], ConfigError, "numbers that fit into float32"),
    ([{"constant": "a", "values": [float("inf")]}], ConfigError, "numbers that fit into float32"),
    ([{"add": ["steps", "head.weight"], "into": "x"}], PlanError, "only floating-point tensors"),
    ([{"add": ["head.weight", "h.0.experts.0.w1"], "into": "x"}], PlanError, "the parts of x must be equal"),
    ([{"copy": "head.weight", "into": []}], ConfigError, "not a list of names"),
    ([{"copy": "head.weight", "into": ["a", "a"]}], PlanError, "two tensors that are made from head.weight would have the name a"),
    ([{"stack": "h.{n}.experts.{e}.w1", "into": "x"}], PlanError, "names differ in 2 captures"),
    ([{"stack": "h.{0..1}.experts.{0..1}.w1", "into": "x"}], PlanError, "names differ in 2 numbers, would become x. Capture all of these"),
    ([{"stack": "h.0.experts.{e}.w1", "into": "x"}, {"unstack": "x", "into": "y.{j}{i}"}], PatternError, "uses j"),
    ([{"split": "h.0.experts.3", "into": ["a", "b"], "dim": 0, "sizes": [1, 2]},
      {"stack": "h.0.experts.{e}.w1", "into": "x"}], PlanError, "lacks the tensor with number 3 of 0 to 11"),
    ([{"concat": ["h.{n}.attn.c_attn.bias", "h.{n}.experts.0.w1"], "into": "x.{n}"}], PlanError, "the parts of x.0 may differ only"),
    ([{"concat": ["head.weight", "h.*.experts.*.w1"], "into": "x"}], PlanError, "which must match one tensor"),
    ([{"concat": ["head.weight", "steps"], "into": "x"}], PlanError, "is float32, steps is int64"),
    ([{"concat": ["head", "head.weight"], "into": "x"}], PlanError, "nothing matches"),
    ([{"unstack": "h.{i}.attn.c_attn.bias", "into": "h.{i}.{i}"}], PatternError, "the pattern captures {i}"),
    ([{"reshape": "head.weight", "shape": [-2, -40]}], PlanError, "does not fit"),
    ([{"concat": ["head.weight", "{head,other}.weight"], "into": "x"}], PlanError, "twice"),
    ([{"concat": ["h.{n}.attn.c_attn.weight", "h.0.attn.c_attn.weight"], "into": "x.{n}"}], PatternError, "does not capture"),
    ([{"stack": "h.{n}.experts.*.w1", "into": "h.{n}.e"}, {"concat": ["h.{n}.e", "h.0.e"], "into": "y"}], PlanError, "must match one tensor"),
    ([{"transpose": "head.weight"}] * 65, PlanError, "more than 64 operations follow each other"),
]  # fmt: skip


@pytest.mark.parametrize(("operations", "error", "message"), WRONG)
def test_what_cannot_be_is_an_error_and_nothing_is_written(
    operations: Any, error: type[CheckpointError], message: str, ckpt: Any
) -> None:
    text = operations if isinstance(operations, str) else yaml.safe_dump(operations)
    Path("ops.yaml").write_text(text)
    done = ckpt("rename", "gpt.pth", "--operations", "ops.yaml", "-o", "out.safetensors")
    assert (done.code, message in " ".join(done.err.split())) == (error.exit_code, True), done.err
    assert not Path("out.safetensors").exists()
    if not isinstance(operations, str):
        with pytest.raises(error):
            cs.rename("gpt.pth", operations=operations)


def test_values_that_scaling_makes_infinite_are_an_error_and_nothing_is_written() -> None:
    with pytest.raises(PlanError, match="head.weight: 80 values times 1e\\+300 would exceed the range of float32"):
        cs.apply(cs.rename("gpt.pth", operations=[{"scale": "head.weight", "by": 1e300}]), "out.safetensors")
    assert not Path("out.safetensors").exists()


def test_what_has_no_number_has_no_order() -> None:
    """By their names k would come before q."""
    torch.save({f"attn.{name}.weight": torch.full((2, 2), i) for i, name in enumerate("qkv")}, "qkv.pth")
    for pattern in ("attn.{q,k,v}.weight", "attn.*.weight"):
        with pytest.raises(PlanError, match="is not known"):
            cs.rename("qkv.pth", operations=[{"concat": pattern, "into": "attn.qkv.weight"}])
    made = renamed([{"concat": ["attn.q.weight", "attn.k.weight", "attn.v.weight"], "into": "qkv"}], "qkv.pth")["qkv"]
    assert made[:, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_ties_survive_operations_that_compute() -> None:
    weight, other = torch.randn(4, 6), torch.randn(4, 6)
    torch.save({"embed": weight, "out": weight, "x": other, "y": other}, "tied.pth")
    plan = cs.rename("tied.pth", operations=[{"scale": "*", "by": 2}, {"reshape": "*", "shape": [-1]}])
    assert [step.tied_to for step in plan.steps] == ["", "embed", "", "x"]
    plan = cs.rename(
        "tied.pth", operations=[{"scale": "*", "by": 2}, {"split": "{embed,out}", "into": ["a.1", "a.2"]}][:1]
    )
    cs.apply(plan, "out.pth")
    assert cs.verify("out.pth").ok


def test_packed_numbers_are_not_taken_apart() -> None:
    torch.save({"w": torch.zeros(4, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, "f4.pth")
    with pytest.raises(PlanError, match="packs several numbers in a byte"):
        cs.rename("f4.pth", operations=[{"transpose": "w"}])


@pytest.mark.parametrize("most", [2_000, pytest.param(20_000, marks=pytest.mark.long)])
def test_tensors_without_end_are_refused_before_they_are_made(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty tensors of no bytes, of so many rows each that the last are over the limit."""
    monkeypatch.setattr(perform, "TENSORS", most)
    rows = torch.zeros(1, dtype=torch.int8).expand(9 * most // 100)
    torch.save({f"w{i}": rows for i in range(30)}, "rows.pth")
    with pytest.raises(PlanError, match=f"makes more than {most} tensors"):
        cs.rename("rows.pth", operations=[{"unstack": "w{n}", "into": "w{n}.{i}"}])


def test_what_is_not_plain_cannot_be_operated_on() -> None:
    torch.save({"s": torch.eye(3).to_sparse(), "w": torch.ones(2)}, "sparse.pth")
    with pytest.raises(FormatError, match=r"transpose s: s cannot be read"):
        cs.rename("sparse.pth", operations=[{"transpose": "s"}])


def test_a_tensor_is_not_unstacked_into_a_vocabulary() -> None:
    torch.save({"w": torch.empty(200_000, 1, dtype=torch.int8)}, "w.pth")
    with pytest.raises(PlanError, match="would become 200000 tensors"):
        cs.rename("w.pth", operations=[{"unstack": "w", "into": "w.{i}"}])


@pytest.mark.long
@examples_of(60)
@given(st.data())
def test_an_operation_and_its_inverse_are_the_identity(data: Any) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    values = torch.randint(-100, 100, shape, dtype=torch.int16)
    save_file({"w": values}, "w.safetensors")
    dim = data.draw(st.integers(0, len(shape) - 1))
    order = data.draw(st.permutations(range(len(shape))))
    sizes = data.draw(st.integers(0, shape[dim]).map(lambda first: [first, shape[dim] - first]))
    forth, back = data.draw(
        st.sampled_from(
            [
                ({"split": "w", "into": ["w.0", "w.1"], "dim": dim, "sizes": sizes}, {"concat": ["w.0", "w.1"], "into": "w", "dim": dim}),
                ({"unstack": "w", "into": "w.{i}", "dim": dim}, {"stack": "w.{e}", "into": "w", "dim": dim}),
                ({"permute": "w", "dims": list(order)}, {"permute": "w", "dims": [order.index(d) for d in range(len(shape))]}),
                ({"reshape": "w", "shape": [-1]}, {"reshape": "w", "shape": shape}),
            ]
        )
    )  # fmt: skip
    middle = renamed([forth], "w.safetensors")
    save_file({key: value.contiguous() for key, value in middle.items()}, "m.safetensors")
    assert torch.equal(renamed([back], "m.safetensors")["w"], values)
    assert torch.equal(renamed([forth, back], "w.safetensors")["w"], values)


def test_columns_of_transposed_tensors_are_read_in_large_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block of rows of the result needs some of every tensor: read piece by piece, that is quadratic."""
    import ckptsurgeon.engine.compute.reading as reading

    torch.save({f"l.{i}.w": torch.randn(256, 256) for i in range(24)}, "t.pth")
    reads = []
    gather = reading._gather
    monkeypatch.setattr(reading, "_gather", lambda *args: reads.append(1) or gather(*args))
    made = renamed([{"transpose": "l.{n}.w"}, {"concat": "l.{n}.w", "into": "all", "dim": 1}], "t.pth")
    source = torch.load("t.pth")
    assert torch.equal(made["all"], torch.cat([source[f"l.{i}.w"].T for i in range(24)], 1))
    assert len(reads) < 24 * 10


@pytest.mark.parametrize("verb", ["stack", "concat", "mean"])
@pytest.mark.parametrize(("pattern", "word"), [("x.{0,1,2,5}", "5"), ("x.{0..3}", "3"), ("x.{1..2}", "")])
def test_every_word_of_a_range_or_list_needs_a_tensor(verb: str, pattern: str, word: str) -> None:
    """A truncated model would become a stack of fewer tensors."""
    tensors = {f"x.{number}": torch.ones(2, 3) for number in range(3)}
    save_file(tensors, "few.safetensors")
    operations = [{verb: pattern, "into": "y"}]
    if not word:
        cs.apply(cs.rename("few.safetensors", operations=operations), "made.safetensors")
        assert "y" in load_file("made.safetensors")
        return
    with pytest.raises(PlanError, match=f"for y, no tensor has {word} in the place of"):
        cs.rename("few.safetensors", operations=operations)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"transpose": "h.{0..9}.experts.{e}.w1"}, ["2..9 of transpose h.{0..9}.experts.{e}.w1 match nothing"]),
        (
            {"scale": "h.{0..1}.experts.{2..12}.w1", "by": 2},
            ["12 of scale h.{0..1}.experts.{2..12}.w1 matches nothing"],
        ),
        ({"zero": "h.{2..4}.attn.c_attn.bias"}, ["3..4 of zero h.{2..4}.attn.c_attn.bias match nothing"]),
        ({"zero": "h.{0..2}.attn.c_attn.bias"}, []),
        ({"zero": "**.{0..2}.attn"}, []),
    ],
)
def test_numbers_of_a_range_that_match_nothing_are_said(row: dict[str, Any], said: list[str]) -> None:
    assert [note for note in cs.rename("gpt.pth", operations=[row]).notes if "nothing" in note] == said
