"""Models that differ: in shapes, dtypes, files, keys, ties."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.engine import apply_settings

Run = Callable[..., Any]
State = dict[str, torch.Tensor]
PAIR = ["a.safetensors", "b.safetensors"]
HALVES: dict[str, Any] = {"method": "linear", "weights": [0.25, 0.75]}


def draw(seed: int, **shapes: tuple[int, ...]) -> State:
    torch.manual_seed(seed)
    return {key.replace("_", "."): torch.randn(shape) for key, shape in shapes.items()}


def merged(models: list[str] | None = None, output: str = "out.safetensors", **how: Any) -> State:
    plan = cs.merge(models or PAIR, **{**HALVES, **how})
    assert cs.Plan.from_json(plan.to_json()) == plan
    cs.apply(plan, output, force=True)
    found = cs.verify(output)
    assert found.ok, found.failed
    return load_file(output) if output.endswith("safetensors") else torch.load(output, weights_only=True)


def notes(models: list[str], **how: Any) -> str:
    return "; ".join(cs.merge(models, **{**HALVES, **how}).notes)


def test_an_error_on_a_tensor_that_fewer_models_have_names_the_tensor(ckpt: Run) -> None:
    for seed, name in enumerate(("a", "b", "c")):
        save_file(draw(seed, w=(3, 5), **({"v": (4,)} if name == "a" else {})), f"{name}.safetensors")
    models = ("a.safetensors", "b.safetensors", "c.safetensors")
    done = ckpt("merge", *models, "-m", "trimmed_mean", "--on-missing", "any", "-n")
    said = "error: v, which is merged from 1 of 3 models: trim 0.1 leaves out the largest and the smallest value, "
    assert (done.code, said in " ".join(done.err.split())) == (2, True), done


# Shapes


@pytest.fixture
def shapes() -> tuple[State, State]:
    a = draw(0, w=(3, 5), v=(4,), n_t=(2, 3, 4))
    b = draw(1, w=(6, 5), v=(4,), n_t=(4, 2, 5))
    save_file(a, PAIR[0])
    save_file(b, PAIR[1])
    return a, b


@pytest.mark.parametrize("elements", [1, 4, 1 << 17])
def test_a_larger_model_gives_its_leading_part(
    shapes: tuple[State, State], elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_settings, "ELEMENTS", elements)
    a, b = shapes
    found = merged(on_mismatch=["slice", "n=skip"])
    assert torch.allclose(found["w"], 0.25 * a["w"] + 0.75 * b["w"][:3])
    assert torch.equal(found["n.t"], a["n.t"])


@pytest.mark.parametrize("elements", [1, 4, 7, 1 << 17])
@pytest.mark.parametrize("swap", [False, True])
def test_where_all_have_it_it_is_merged_and_the_rest_is_the_firsts(
    shapes: tuple[State, State], elements: int, swap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_settings, "ELEMENTS", elements)
    first, second = shapes[::-1] if swap else shapes
    found = merged(PAIR[::-1] if swap else PAIR, on_mismatch="overlap")
    for key in first:
        common = tuple(slice(min(sizes)) for sizes in zip(first[key].shape, second[key].shape, strict=True))
        expected = first[key].clone()
        expected[common] = 0.25 * first[key][common] + 0.75 * second[key][common]
        assert torch.allclose(found[key], expected), key


@pytest.mark.usefixtures("shapes")
def test_what_is_made_to_fit_is_said_with_its_keys() -> None:
    said = "of other shapes in some models, merged"
    assert f"2 tensors {said} in the part that all have (--on-mismatch overlap): n.t, w" in notes(
        PAIR, on_mismatch="overlap"
    )
    assert f"1 tensor {said} with their leading parts (--on-mismatch slice): w" in notes(
        PAIR, on_mismatch=["slice", "n=skip"]
    )


def test_with_a_base_the_rest_is_the_bases(shapes: tuple[State, State]) -> None:
    a, b = shapes
    base = draw(2, w=(4, 4), v=(4,), n_t=(3, 3, 3))
    save_file(base, "base.safetensors")
    found = merged(method="task_arithmetic", base="base.safetensors", on_mismatch="overlap")
    w, common = base["w"].clone(), (slice(3), slice(4))
    w[common] += 0.25 * (a["w"][common] - w[common]) + 0.75 * (b["w"][common] - base["w"][common])
    assert torch.allclose(found["w"], w, atol=1e-6)


def test_the_last_policy_whose_pattern_matches_wins(shapes: tuple[State, State]) -> None:
    plan = cs.merge(PAIR, **HALVES, on_mismatch={"**": "skip", "w": "slice", "n.*": "overlap"})
    assert {step.key: (step.op, step.policy) for step in plan.steps} == {
        "w": ("merge", "slice"), "v": ("merge", ""), "n.t": ("merge", "overlap"),
    }  # fmt: skip
    again = cs.merge(PAIR, **HALVES, on_mismatch={"w": "slice", "**": "skip"})
    assert {step.policy for step in again.steps} == {""}


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ([], 4, "n.t is float32 (2, 3, 4) in a.safetensors, float32 (4, 2, 5) in b.safetensors"),
        (["slice"], 4, "n.t is float32 (2, 3, 4) in a.safetensors, float32 (4, 2, 5) in b.safetensors"),
        (["pad"], 2, "--on-mismatch pad is unknown. Use error, skip, slice, overlap."),
        (["n:skip"], 2, "--on-mismatch n:skip is unknown. Did you mean n=skip?"),
        (["skip", "slice"], 2, "contradict each other"),
        (["skip", "nosuch=slice"], 2, "--on-mismatch nosuch matches none of the 3 output keys"),
    ],
)
def test_a_mismatch_that_nothing_settles_is_an_error(
    shapes: tuple[State, State], given: list[str], code: int, said: str, ckpt: Run
) -> None:
    flags = [text for policy in given for text in ("--on-mismatch", policy)]
    done = ckpt("merge", *PAIR, "--method", "linear", "--weights", "1,1", *flags, "-o", "out.safetensors")
    assert done.code == code
    assert said in " ".join(done.err.split())
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize(
    ("one", "other", "options", "hint"),
    [
        ((4, 8), (6, 8), {}, "skip.* differ, slice .* larger ones, overlap .* all have, or vocab to map"),
        ((4, 8), (2, 8), {}, "skip.* differ, overlap .* all have, or vocab to map"),
        ((4, 8), (2, 8), {"on_mismatch": "slice"}, "skip.* differ, overlap"),
        ((4, 8), (6, 9), {}, "skip.* differ, slice .* larger ones, or overlap .* all have[.]"),
        ((4, 8), (4, 8, 2), {}, "Use .*skip.* to merge without the tensors that differ[.]"),
        ((4, 8), (8, 4), {}, "Transpose with ckpt rename .*transpose: 'w'}. Or use .*skip.* differ, or overlap"),
    ],
)
def test_the_hint_names_only_what_settles_the_mismatch(
    one: tuple[int, ...], other: tuple[int, ...], options: dict[str, Any], hint: str
) -> None:
    save_file({"w": torch.ones(one)}, PAIR[0])
    save_file({"w": torch.ones(other)}, PAIR[1])
    with pytest.raises(cs.PlanError, match=hint):
        cs.merge(PAIR, **HALVES, **options)


def test_a_merge_that_skips_all_tensors_advises_only_what_could_help() -> None:
    for name, key in zip((*PAIR, "c.safetensors"), ("w", "w", "v"), strict=True):
        save_file({key: torch.ones(2)}, name)
    with pytest.raises(cs.PlanError, match=r"is in all models\. Use on_missing=\"any\"\."):
        cs.merge([PAIR[0], "c.safetensors"], **HALVES, on_missing="skip")
    with pytest.raises(cs.PlanError, match=r"all models and the base\. Use .*any.* or .*base"):
        cs.merge(PAIR, method="task_arithmetic", base="c.safetensors", weights=[1, 1], on_missing="skip")


@pytest.mark.parametrize(
    ("states", "options", "hint"),
    [
        (("v", "w", None), HALVES, "use on_missing=.skip. or any"),
        (("v", "w", "vw"), {"method": "task_arithmetic", "weights": [1, 1]}, "use on_missing=.base., skip or any"),
        (("vw", "vw", "v"), {"method": "task_arithmetic", "weights": [1, 1]}, "use on_missing=.skip.[.]"),
        (("vw", "v", "v"), {"method": "task_arithmetic", "weights": [1, 1]}, "use on_missing=.skip. or any[.]"),
    ],
)
def test_the_hint_on_missing_tensors_names_only_what_settles_it(
    states: tuple[str | None, ...], options: dict[str, Any], hint: str
) -> None:
    for name, keys in zip((*PAIR, "base.safetensors"), states, strict=True):
        save_file({key: torch.ones(2) for key in keys or ""}, name)
    base = {"base": "base.safetensors"} if states[2] else {}
    with pytest.raises(cs.PlanError, match=hint):
        cs.merge(PAIR, **options, **base)


CHOSEN = "1 tensor not merged but chosen by --int-buffers {}: w"
SLICED = "1 tensor of another shape in the model that --int-buffers chooses: its leading part is taken: w"


@pytest.mark.parametrize(
    ("policy", "buffers", "said"),
    [
        ("overlap", "first", (CHOSEN.format("first"),)),
        ("slice", "first", (CHOSEN.format("first"),)),
        ("slice", "last", (CHOSEN.format("last"), SLICED)),
    ],
)
def test_integers_of_another_shape_are_not_said_to_be_merged(policy: str, buffers: str, said: tuple[str, ...]) -> None:
    for name, size in zip(PAIR, (2, 3), strict=True):
        save_file({"w": torch.zeros(size, dtype=torch.int64), "f": torch.ones(2) * size}, name)
    assert cs.merge(PAIR, **HALVES, on_mismatch=policy, int_buffers=buffers).notes == said


def test_the_hint_on_numbers_of_another_kind_is_to_skip_them() -> None:
    save_file({"w": torch.ones(2)}, PAIR[0])
    save_file({"w": torch.ones(2, dtype=torch.int32)}, PAIR[1])
    with pytest.raises(cs.PlanError, match="skip.* to merge without the tensors that differ[.]"):
        cs.merge(PAIR, **HALVES)


def test_what_only_one_of_two_is_left_of_is_taken_as_it_is(shapes: tuple[State, State]) -> None:
    found = merged(method="slerp", weights=None, t=0.25, on_mismatch="skip")
    assert torch.equal(found["w"], shapes[0]["w"])
    assert torch.equal(found["n.t"], shapes[0]["n.t"])
    assert not torch.equal(found["v"], shapes[0]["v"])
    assert "2 tensors made from fewer models than given" in notes(PAIR, on_mismatch="skip")


def test_a_plan_whose_shapes_do_not_fit_is_refused(shapes: tuple[State, State]) -> None:
    data = cs.merge(PAIR, **HALVES, on_mismatch=["overlap"]).to_json()
    for step in data["steps"]:
        step["policy"] = "slice" if step["policy"] else None
    with pytest.raises(cs.PlanError, match="the plan is not possible"):
        cs.apply(cs.Plan.from_json(data), "out.safetensors")


def test_verify_finds_a_value_outside_of_what_was_merged(shapes: tuple[State, State]) -> None:
    cs.apply(cs.merge(PAIR, **HALVES, on_mismatch="overlap"), "out.safetensors")
    a = load_file(PAIR[0])
    a["n.t"][1, 2, 3] += 1
    save_file(a, "other.safetensors")
    data = bytearray(Path("out.safetensors").read_bytes())
    at = data.index(a["n.t"][0, 2].numpy().tobytes())  # the first's own
    data[at] ^= 1
    Path("out.safetensors").write_bytes(data)
    assert {failure.key for failure in cs.verify("out.safetensors").failed} == {"n.t"}


@pytest.mark.parametrize("on_mismatch", ["error", "skip", "slice", "overlap"])
@pytest.mark.parametrize("first", [(), (1,)])
@pytest.mark.parametrize("has_base", [False, True])
def test_one_element_and_a_scalar_are_merged_in_the_shape_of_the_first(
    first: tuple[int, ...], has_base: bool, on_mismatch: str
) -> None:
    other = () if first else (1,)
    base = "base.safetensors" if has_base else None
    shapes = (
        {PAIR[0]: other, PAIR[1]: other, "base.safetensors": first} if has_base else {PAIR[0]: first, PAIR[1]: other}
    )
    for number, (name, shape) in enumerate(shapes.items()):
        save_file({"scale": torch.full(shape, number + 1.0), "steps": torch.full(shape, number)}, name)
    how: dict[str, Any] = {"method": "task_arithmetic", "base": base} if has_base else {}
    found = merged(on_mismatch=on_mismatch, **how)
    assert found["scale"].shape == found["steps"].shape == first
    assert float(found["scale"]) == (3 + 0.25 * -2 + 0.75 * -1 if has_base else 0.25 * 1 + 0.75 * 2)
    assert int(found["steps"]) == 1  # the last model's
    assert int(merged(on_mismatch=on_mismatch, int_buffers="max", **how)["steps"]) == 1


def test_scalars_fit_one_element_beside_others_that_are_cut() -> None:
    for name, size in (("a", (3,)), ("b", ()), ("c", (1,))):
        save_file({"w": torch.full(size, 2.0 + len(size) + sum(size))}, f"{name}.safetensors")
    models = ["c.safetensors", "b.safetensors", "a.safetensors"]
    found = merged(models, weights=[1, 1, 2], on_mismatch="slice")["w"]
    assert found.tolist() == [(4 + 2 + 2 * 6) / 4]


# Dtypes


SMALL = {"float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"}


@pytest.mark.parametrize(
    ("first", "second", "gives"),
    [
        *[(dtype, dtype, dtype) for dtype in sorted(SMALL)], ("float8_e8m0fnu",) * 3,
        ("float8_e4m3fn", "bfloat16", "bfloat16"), ("float8_e4m3fn", "float8_e5m2", "float32"),
        ("bfloat16", "float16", "float32"), ("float16", "float32", "float32"), ("bfloat16", "float64", "float64"),
    ],
)  # fmt: skip
def test_dtypes_are_mixed_in_full_precision_and_the_output_holds_all(first: str, second: str, gives: str) -> None:
    torch.manual_seed(0)
    states = [{"w": torch.rand(9, 7).mul(8).to(getattr(torch, dtype))} for dtype in (first, second)]
    for name, state in zip("ab", states, strict=True):
        torch.save(state, f"{name}.pth")
    found = merged(["a.pth", "b.pth"], "out.pth")["w"]
    assert found.dtype == getattr(torch, gives)
    wide = torch.float64 if gives == "float64" else torch.float32
    a, b = (state["w"].to(torch.float32).to(wide) for state in states)
    expected = (0.25 * a + 0.75 * b).to(found.dtype)
    assert torch.equal(found.to(wide), expected.to(wide))


def test_the_dtype_that_is_asked_for_is_that_of_all_floats() -> None:
    for name, state in (("a", draw(0, w=(3,), own=(2,))), ("b", draw(1, w=(3,)))):
        save_file({**state, "steps": torch.tensor(3)}, f"{name}.safetensors")
    found = merged(dtype="bf16", on_missing="any")
    assert {key: str(value.dtype) for key, value in found.items()} == {
        "w": "torch.bfloat16", "own": "torch.bfloat16", "steps": "torch.int64",
    }  # fmt: skip


def test_a_scale_below_zero_is_refused_where_there_is_no_sign() -> None:
    for name, value in (("a", 4.0), ("b", 2.0)):
        torch.save({"scale": torch.tensor([value, 1.0]).to(torch.float8_e8m0fnu)}, f"{name}.pth")
    plan = cs.merge(["a.pth", "b.pth"], method="linear", weights=[1.0, -3.0], normalize=False)
    with pytest.raises(cs.PlanError, match="scale: a value is below zero, and float8_e8m0fnu has no negative numbers"):
        cs.apply(plan, "out.pth")


# Files


@pytest.mark.long
def test_files_of_all_kinds_are_merged_with_each_other() -> None:
    states = [draw(seed, encoder_w=(40, 30), head_w=(8, 30), head_b=(8,)) for seed in range(4)]
    torch.save({"state_dict": {f"module.{key}": value for key, value in states[0].items()}, "epoch": 3}, "wrapped.pt")
    for number, output, more in ((1, "dcp/", {"to": "dcp"}), (2, "shards/", {"max_shard_size": "2KB"})):
        save_file(states[number], "plain.safetensors")
        cs.apply(cs.convert("plain.safetensors"), output, **more)
    torch.save(states[3], "legacy.pth", _use_new_zipfile_serialization=False)
    expected = {key: sum(state[key] for state in states) / 4 for key in states[0]}
    models = ["wrapped.pt", "dcp", "shards", "legacy.pth"]
    assert len(list(Path("shards").glob("*.safetensors"))) > 1
    for output, more in (("out.safetensors", {}), ("out/", {"max_shard_size": "2KB"}), ("out.dcp/", {"to": "dcp"})):
        cs.apply(cs.merge(models, method="linear", weights=[1] * 4, unwrap=True), output, **more)
        checked = cs.verify(output)
        assert checked.ok, checked.failed
        with cs.open_checkpoint(output) as found:
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                assert torch.allclose(found.tensor(key), value, atol=1e-6)


def test_metadata_and_the_recipe_go_with_the_output() -> None:
    for seed, name in enumerate(PAIR):
        save_file(draw(seed, w=(3,)), name, metadata={"who": name})
    merged()
    with cs.open_checkpoint("out.safetensors") as found:
        assert found.metadata["who"] == PAIR[0]
        assert '"method":"linear"' in (found.recipe or "")
    plan = cs.merge(PAIR, method="task_arithmetic", weights=[1, 1], base=PAIR[1])
    assert plan.metadata["who"] == PAIR[1]


# Ties, integers, keys


def tied(seed: int, *, head: bool = True, apart: bool = False) -> State:
    state = draw(seed, embed_w=(6, 4), body_w=(4, 4))
    if head:
        state["head.w"] = state["embed.w"].clone() if apart else state["embed.w"]
    return state


def test_what_all_tie_is_tied_and_what_one_unties_comes_apart_and_is_said() -> None:
    torch.save(tied(0), "a.pth")
    torch.save(tied(1), "b.pth")
    torch.save(tied(1, apart=True), "c.pth")
    found = merged(["a.pth", "b.pth"], "out.pth")
    assert found["head.w"].data_ptr() == found["embed.w"].data_ptr()
    found = merged(["a.pth", "c.pth"], "out.pth")
    assert found["head.w"].data_ptr() != found["embed.w"].data_ptr()
    said = "embed.w and head.w are one tensor in a.pth, and two in the output"
    assert said in notes(["a.pth", "c.pth"])
    assert "one tensor" not in notes(["a.pth", "b.pth"])


def test_a_head_that_a_model_lacks_is_what_all_others_tie_it_to() -> None:
    a, b = tied(0), tied(1, head=False)
    torch.save(a, "a.pth")
    save_file(b, "b.safetensors")
    found = merged(["a.pth", "b.safetensors"], "out.pth")
    assert torch.allclose(found["head.w"], 0.25 * a["embed.w"] + 0.75 * b["embed.w"])
    assert found["head.w"].data_ptr() == found["embed.w"].data_ptr()
    torch.save(tied(0, apart=True), "a.pth")
    with pytest.raises(cs.PlanError, match=r"b\.safetensors lacks head\.w"):
        cs.merge(["a.pth", "b.safetensors"], **HALVES)


@pytest.mark.parametrize(("rule", "gives"), [("last", [2, 9]), ("first", [5, 1]), ("max", [5, 9])])
def test_integers_that_differ_are_taken_by_rule(rule: str, gives: list[int]) -> None:
    for name, steps in zip(PAIR, ([5, 1], [2, 9]), strict=True):
        save_file({"steps": torch.tensor(steps), "on": torch.tensor([True, steps[0] > 3])}, name)
    found = merged(int_buffers=rule)
    assert found["steps"].tolist() == gives
    assert found["steps"].dtype == torch.int64


def test_integers_of_other_shapes_give_their_leading_part_or_say_what_to_do() -> None:
    save_file({"ids": torch.arange(4)}, PAIR[0])
    save_file({"ids": torch.arange(6) + 10}, PAIR[1])
    assert merged(on_mismatch="slice")["ids"].tolist() == [10, 11, 12, 13]
    assert merged(on_mismatch="slice", int_buffers="first")["ids"].tolist() == [0, 1, 2, 3]
    with pytest.raises(cs.PlanError, match="int_buffers=.last. does not work with on_mismatch=.overlap.") as error:
        cs.merge(PAIR, **HALVES, on_mismatch="overlap")
    assert "--int-buffers first" in error.value.hint
    assert "--on-mismatch ids=skip" in error.value.hint


def test_the_first_models_integers_are_no_remedy_if_the_base_has_another_shape() -> None:
    for name, size in (("base", 4), *((name, 6) for name in PAIR)):
        save_file({"ids": torch.arange(size), "w": torch.ones(2)}, name)
    with pytest.raises(cs.PlanError, match="int_buffers=.first. does not work with") as error:
        cs.merge(PAIR, base="base", method="task_arithmetic", on_mismatch="overlap", int_buffers="first")
    assert error.value.hint == (
        "Merge this tensor without the models in which its shape differs: --on-mismatch ids=skip."
    )


@pytest.fixture
def lacking() -> dict[str, State]:
    a, b, base = draw(0, w=(3,), a=(2,), x=(2,)), draw(1, w=(3,), b=(2,), x=(2,)), draw(2, w=(3,), a=(2,), b=(2,))
    for name, state in (("a", a), ("b", b), ("base", base)):
        save_file(state, f"{name}.safetensors")
    return {"a": a, "b": b, "base": base}


@pytest.mark.parametrize(
    ("rule", "keys"),
    [("skip", {"w"}), ("base", None), ("any", {"w", "a", "b", "x"}), ("error", None)],
)
def test_keys_that_some_lack_go_by_rule_with_a_base_that_lacks_them_too(
    rule: str, keys: set[str] | None, lacking: dict[str, State]
) -> None:
    how: dict[str, Any] = {"method": "task_arithmetic", "base": "base.safetensors", "weights": [1.0, 1.0]}
    if keys is None:  # the base has no x to count as
        with pytest.raises(cs.PlanError, match=r"base\.safetensors lacks x" if rule == "base" else "lacks"):
            cs.merge(PAIR, **how, on_missing=rule)
        return
    if rule == "any":  # nothing says what x would be the difference from
        with pytest.raises(
            cs.PlanError, match="the base lacks the tensor x: the merge method task_arithmetic needs it"
        ):
            cs.merge(PAIR, **how, on_missing=rule)
        how = {"method": "linear", "weights": [1.0, 1.0]}
    found = merged(**how, on_missing=rule)
    assert found.keys() == keys
    if rule == "any":
        assert torch.equal(found["a"], lacking["a"]["a"])
        assert torch.allclose(found["x"], (lacking["a"]["x"] + lacking["b"]["x"]) / 2)


def test_what_the_base_has_counts_where_a_model_lacks_it(lacking: dict[str, State]) -> None:
    save_file({**lacking["base"], "x": torch.zeros(2)}, "base.safetensors")
    found = merged(method="task_arithmetic", base="base.safetensors", weights=[1.0, 1.0], on_missing="base")
    assert torch.allclose(found["a"], lacking["a"]["a"])
    assert torch.allclose(found["x"], lacking["a"]["x"] + lacking["b"]["x"])


def test_one_listed_twice_and_one_that_is_the_base() -> None:
    a, b = draw(0, w=(3, 4)), draw(1, w=(3, 4))
    save_file(a, PAIR[0])
    save_file(b, PAIR[1])
    assert torch.allclose(merged([PAIR[0], PAIR[0], PAIR[1]], weights=[1, 1, 2])["w"], (a["w"] + b["w"]) / 2)
    how: dict[str, Any] = {"method": "ties", "base": PAIR[0], "weights": [1.0, 1.0], "density": 1.0}
    assert torch.allclose(merged(**how)["w"], b["w"], atol=1e-6)


def test_a_name_is_looked_for_under_those_that_all_others_tie_to_it() -> None:
    """One ties y to x and one z, so that a model without x has it under neither."""
    for name, tied in (("a", "y"), ("b", "z"), ("c", "")):
        state = {key: torch.full((2,), float(place)) for place, key in enumerate("xyz")}
        torch.save({**state, **({tied: state["x"]} if tied else {})}, f"{name}.pth")
    torch.save({key: torch.ones(2) for key in "yz"}, "d.pth")
    models = [f"{name}.pth" for name in "abcd"]
    with pytest.raises(cs.PlanError, match=r"d\.pth lacks x"):
        cs.merge(models, method="linear", weights=[1, 1, 1, 1])
    torch.save({"y": torch.full((2,), 4.0)}, "d.pth")
    found = merged(["a.pth", "d.pth"], "out.pth", weights=[1, 1], on_missing="any")
    assert found["x"].tolist() == [2, 2]


def test_a_tensor_that_the_base_lacks_is_taken_as_it_is_and_that_is_said() -> None:
    save_file({"a": torch.ones(2), "new": torch.ones(2)}, "tuned.safetensors")
    save_file({"a": torch.zeros(2)}, "base.safetensors")
    how: dict[str, Any] = {"method": "task_arithmetic", "base": "base.safetensors", "weights": [0.5]}
    plan = cs.merge(["tuned.safetensors"], **how, on_missing="any")
    assert plan.notes == ("1 tensor not in the base, and copied from the only model that has it: new",)
    cs.apply(plan, "out.safetensors")
    assert torch.equal(load_file("out.safetensors")["new"], torch.ones(2))
