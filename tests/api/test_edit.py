"""Rename, filter and convert: the right tensors under the right names, and what lies beside them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import ckptsurgeon as cs
from ckptsurgeon.planning.keys.rules import parse_rule

from ..helpers.depth import examples_of


def model() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False))
    made[2].weight = made[0].weight
    return made


@pytest.fixture(autouse=True)
def state() -> dict[str, torch.Tensor]:
    net = model()
    found = {f"module.{key}": value for key, value in net.state_dict().items()}
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.tensor([1])).sum().backward()
    optimizer.step()
    torch.save(
        {
            "epoch": 3,
            "model": found,
            "model_ema": {key: value + 1 for key, value in found.items()},
            "optimizer": optimizer.state_dict(),
            "args": argparse.Namespace(lr=1),
            "history": [1, 2.5, -(2**40), {"best": (1, None, True), 4: ""}, []],
        },
        "training.pth",
    )
    return found


def read(path: str) -> dict[str, torch.Tensor]:
    assert cs.verify(path).ok
    return load_file(path) if path.endswith(".safetensors") else torch.load(path, weights_only=True)


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_keys_are_renamed_and_the_rest_stay(state: dict[str, torch.Tensor]) -> None:
    cs.apply(cs.rename("training.pth", map=["module.0=embed", "module.{n}=layers.{n-1}"]), "out.safetensors")
    assert same(
        read("out.safetensors"),
        {
            "embed.weight": state["module.0.weight"], "layers.0.weight": state["module.1.weight"],
            "layers.0.bias": state["module.1.bias"], "layers.1.weight": state["module.2.weight"],
        },
    )  # fmt: skip
    cs.apply(cs.rename("training.pth", map={"module.1": "middle"}), "some.safetensors")
    assert "module.0.weight" in read("some.safetensors")


def test_wrappers_stay_unless_they_are_to_go(state: dict[str, torch.Tensor]) -> None:
    assert [step.key for step in cs.filter("training.pth").steps] == list(state)
    assert [step.key for step in cs.filter("training.pth", unwrap=True).steps] == list(model().state_dict())
    assert [step.key for step in cs.rename("training.pth", unwrap=True).steps] == list(model().state_dict())


def test_a_state_dict_is_chosen_and_thinned(state: dict[str, torch.Tensor]) -> None:
    plan = cs.filter("training.pth", root="model_ema", exclude=["**.bias", "module.2"])
    cs.apply(plan, "out.safetensors")
    kept = ["module.0.weight", "module.1.weight"]
    assert same(read("out.safetensors"), {key: state[key] + 1 for key in kept})
    assert plan.excluded == 2
    assert any("left out: epoch, model, optimizer, args (argparse.Namespace), history;" in note for note in plan.notes)


def test_ties_survive_whichever_name_is_left() -> None:
    cs.apply(cs.filter("training.pth"), "out.pth")
    with cs.open_checkpoint("out.pth", unwrap=False) as found:
        assert found.ties == {"module.2.weight": "module.0.weight"}
    plan = cs.filter("training.pth", exclude=["module.0"])
    assert {step.key: step.tied_to for step in plan.steps}["module.2.weight"] == ""
    cs.apply(plan, "rest.safetensors")
    assert len(read("rest.safetensors")) == 3


def test_plain_entries_are_carried_and_others_named() -> None:
    plan = cs.filter("training.pth", exclude=["module.2"], keep_extras=True)
    assert plan.carried.entries == ("epoch", "history")
    (note,) = [note for note in plan.notes if note.startswith("not copied to the output")]
    assert note == (
        "not copied to the output: model_ema and optimizer (it contains tensors); args (it contains a argparse.Namespace)"
    )
    cs.apply(plan, "out.pth")
    found: Any = read("out.pth")
    assert list(found) == ["model", "epoch", "history"]
    assert found["epoch"] == 3
    assert found["history"] == [1, 2.5, -(2**40), {"best": (1, None, True), 4: ""}, []]
    assert list(found["model"]) == ["module.0.weight", "module.1.weight", "module.1.bias"]
    again = cs.Plan.from_json(json.loads(json.dumps(plan.to_json())))
    cs.apply(again, "again.pth")
    assert Path("again.pth").read_bytes() == Path("out.pth").read_bytes()
    assert cs.inspect("out.pth").root == "model"


def test_entries_among_the_tensors_stay_among_them() -> None:
    torch.save({"w": torch.ones(2), "epoch": 4, "deep": {"a": [None]}}, "flat.pth")
    cs.apply(cs.rename("flat.pth", map=["w=v"], keep_extras=True), "out.pth")
    found: Any = read("out.pth")
    assert found["epoch"] == 4
    assert found["deep"] == {"a": [None]}
    assert list(found) == ["v", "epoch", "deep"]


@pytest.mark.parametrize("output", ["out.safetensors", "folder"])
def test_what_has_no_place_for_entries_says_so(output: str) -> None:
    with pytest.raises(cs.ConfigError, match="cannot store entries other than tensors"):
        cs.apply(cs.filter("training.pth", keep_extras=True), output)
    assert not Path(output).exists()


def test_nothing_left_and_nothing_matched_are_errors() -> None:
    with pytest.raises(cs.PlanError, match="nothing is left of training.pth") as caught:
        cs.filter("training.pth", exclude=["**"])
    assert caught.value.exit_code == 4
    with pytest.raises(cs.PatternError, match="exclude=.decoder. matches none"):
        cs.filter("training.pth", exclude=["decoder"])
    with pytest.raises(cs.PatternError, match="map=.nothing=x. matches none"):
        cs.rename("training.pth", map=["nothing=x"])
    with pytest.raises(cs.ConfigError, match="no rule given"):
        cs.rename("training.pth")
    with pytest.raises(cs.PlanError, match=r"both become x.weight") as caught:
        cs.rename("training.pth", map=["module.*=x"])
    assert caught.value.hint.endswith("ckpt transplant has --exclude, and ckpt filter writes a source without it.")


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda: cs.convert("training.pth", dtype="float16", heads="4"), "heads has no effect without"),
        (lambda: cs.rename("training.pth", map=["module.*=x"], heads="4"), "heads has no effect without"),
        (lambda: cs.convert("training.pth", layout="keep", heads="4"), "heads has no effect with layout"),
        (
            lambda: cs.convert("training.pth", layout="gguf", heads="4"),
            "heads has no effect on a conversion to or from",
        ),
    ],
)
def test_heads_without_an_effect_are_an_error(edit: Callable[[], cs.Plan], why: str) -> None:
    with pytest.raises(cs.ConfigError, match=why):
        edit()


def test_values_that_are_not_plain_are_refused_with_all_their_names() -> None:
    torch.save({"a": torch.ones(2).to_sparse(), "b": torch.ones(1), "c": torch.ones(2).to_sparse()}, "odd.pth")
    with pytest.raises(cs.FormatError, match="a of odd.pth cannot be copied.*--exclude a") as caught:
        cs.filter("odd.pth")
    assert len(caught.value.details) == 2
    assert len(cs.filter("odd.pth", exclude=["a", "c"]).steps) == 1


def test_floats_are_cast_and_integers_left() -> None:
    torch.save(
        {"f": torch.tensor([1.5, 1e30]), "i": torch.ones(2, dtype=torch.int64), "c": torch.ones(1) + 1j}, "s.pth"
    )
    plan = cs.convert("s.pth", dtype=torch.float16)
    assert [step.dtype for step in plan.steps] == ["float16", "int64", "complex64"]
    receipt = cs.apply(plan, "out.pth")
    assert any("1 value of f became infinite or NaN" in note for note in receipt.notes)
    assert receipt.counts == {"copied": 2, "cast": 1}


def test_metadata_is_carried_set_and_removed() -> None:
    save_file({"a": torch.ones(1)}, "in.safetensors", metadata={"format": "pt", "who": "me", "old": "x"})
    cs.apply(cs.convert("in.safetensors", metadata={"old": "", "new": "y"}), "out.safetensors")
    with safe_open("out.safetensors", "pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if "ckpt" not in key}
    assert metadata == {"format": "pt", "who": "me", "new": "y"}


def test_an_empty_entry_of_the_source_is_kept() -> None:
    save_file({"a": torch.ones(1)}, "in.safetensors", metadata={"empty": "", "gone": ""})
    for plan in (
        cs.rename("in.safetensors", map="a=b"), cs.filter("in.safetensors"), cs.convert("in.safetensors", metadata={"gone": ""}),
    ):  # fmt: skip
        assert plan.metadata["empty"] == ""
    assert "gone" not in plan.metadata
    cs.apply(plan, "out.safetensors")
    with safe_open("out.safetensors", "pt") as file:
        assert file.metadata()["empty"] == ""


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ({"epoch": 3}, "metadata is {'epoch': 3}, not a map from strings to strings"),
        ({"epoch": None}, "in the argument metadata, 'epoch' has no value"),
        ({3: "x"}, "metadata is {3: 'x'}, not a map from strings to strings"),
        ({"ckptsurgeon": "x"}, "the name ckptsurgeon in metadata is reserved for the recipe"),
        (["a=b"], "metadata is .*, not a map from strings to strings"),
    ],
)
def test_metadata_that_no_reader_opens_is_refused(metadata: Any, why: str) -> None:
    with pytest.raises(cs.ConfigError, match=why):
        cs.convert("training.pth", metadata=metadata)


def test_a_conversion_to_shards_and_back_is_the_same() -> None:
    cs.apply(cs.convert("training.pth"), "whole.safetensors")
    cs.apply(cs.convert("whole.safetensors"), "shards", max_shard_size="100B")
    cs.apply(cs.convert("shards"), "p.pth")
    cs.apply(cs.convert("p.pth"), "shards_pth", to="pth", max_shard_size="100B")
    cs.apply(cs.convert("shards_pth"), "back.safetensors")
    assert same(read("back.safetensors"), read("whole.safetensors"))


name = st.text("abcdef", min_size=1, max_size=3)


@pytest.mark.long
@examples_of(40)
@given(st.sets(st.lists(name, min_size=1, max_size=3).map(".".join), min_size=1, max_size=6), name)
def test_a_prefix_put_on_and_taken_off_is_the_identity(keys: set[str], prefix: str) -> None:
    tensors = {key: torch.full((2,), float(i)) for i, key in enumerate(sorted(keys))}
    save_file(tensors, "in.safetensors")
    cs.apply(cs.rename("in.safetensors", map=[f"=new.{prefix}"]), "on.safetensors", force=True)
    cs.apply(cs.rename("on.safetensors", map=[f"new.{prefix}="]), "off.safetensors", force=True)
    assert same(load_file("off.safetensors"), tensors)


def test_a_list_of_layers_renumbered_and_back_is_the_identity() -> None:
    tensors = {f"layers.{i}.{kind}": torch.randn(2) for i in range(12) for kind in ("w", "b")}
    save_file(tensors, "in.safetensors")
    cs.apply(cs.rename("in.safetensors", map=["layers.{n}=blocks.{n+12}"]), "up.safetensors")
    cs.apply(cs.rename("up.safetensors", map=["blocks.{n}=layers.{n-12}"]), "down.safetensors")
    assert same(load_file("down.safetensors"), tensors)


INVERSES = [
    (["{n}.**=blocks.{n+5}.**"], ["blocks.{n}.**={n-5}.**"]),
    (["{n}.*.**={n}.x.*.**"], ["{n}.x.*.**={n}.*.**"]),
    (["{n}.*={2*n}.*"], ["{n}.*={n//2}.*"]),
    ([r"re:(\d+)\.(.*)={2}.{1}"], [r"re:(.*)\.(\d+)={2}.{1}"]),
    (["0=first", "{n}=rest.{n}"], ["first=0", "rest.{n}={n}"]),
]


@pytest.mark.long
@examples_of(60)
@example({(0, "a", "b")}, INVERSES[-1])
@given(st.sets(st.tuples(st.integers(0, 30), name, name), min_size=1, max_size=8), st.sampled_from(INVERSES))
def test_rules_with_captures_and_their_inverses_are_the_identity(
    parts: set[tuple[int, str, str]], rules: tuple[list[str], list[str]]
) -> None:
    tensors = {f"{n}.{a}.{b}": torch.full((2,), float(i)) for i, (n, a, b) in enumerate(sorted(parts))}
    save_file(tensors, "in.safetensors")
    cs.apply(cs.rename("in.safetensors", map=_in_use(rules[0], tensors)), "there.safetensors", force=True)
    there = load_file("there.safetensors")
    cs.apply(cs.rename("there.safetensors", map=_in_use(rules[1], there)), "back.safetensors", force=True)
    assert same(load_file("back.safetensors"), tensors)


def _in_use(rules: list[str], keys: Any) -> list[str]:
    """Those rules that something is left for: one that matches nothing, or comes too late, is an error."""
    used, left = [], list(keys)
    for rule in rules:
        parsed = parse_rule(rule)
        taken = [key for key in left if parsed.apply(key) is not None]
        if taken:
            used.append(rule)
            left = [key for key in left if key not in taken]
    return used


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["convert", "training.pth", "--to", "pth", "-o", "o.safetensors"], "contradict each other"),
        (["filter", "training.pth"], "no output given"),
        (["convert", "training.pth", "--set-metadata", "x", "-o", "o.pth"], "does not have the form KEY=VALUE"),
        (["convert", "training.pth", "--set-metadata", "ckptsurgeon=x", "-o", "o.pth"], "reserved for the recipe"),
        (["convert", "training.pth", "--dtype", "float31", "-o", "o.pth"], "no dtype 'float31'"),
        (["convert", "training.pth", "-o", "training.pth", "--force"], "is an input"),
    ],
)
def test_wrong_usage_is_said(command: list[str], why: str, ckpt: Any) -> None:
    done = ckpt(*command)
    assert done.code in (2, 5)
    assert why in done.err


@pytest.mark.parametrize("verb", [["rename", "--map", "module="], ["filter"], ["convert", "--dtype", "bf16"]])
def test_the_command_the_plan_and_the_api_give_the_same_bytes(verb: list[str], ckpt: Any) -> None:
    name, *options = verb
    assert ckpt(name, "training.pth", *options, "-o", "a.safetensors").code == 0
    Path("plan.json").write_text(ckpt(name, "training.pth", *options, "-n", "--json").out)
    assert ckpt("apply", "plan.json", "-o", "b.safetensors").code == 0
    made = {"rename": lambda: cs.rename("training.pth", map="module="), "filter": lambda: cs.filter("training.pth")}
    cs.apply(made.get(name, lambda: cs.convert("training.pth", dtype="bf16"))(), "c.safetensors")
    a, b, c = (Path(f"{name}.safetensors").read_bytes() for name in "abc")
    assert a == b == c
    shown = json.loads(ckpt(name, "training.pth", *options, "-o", "d.pth", "--json").out)
    assert shown["kind"] == "ckpt.receipt"


def test_a_dtype_that_applies_to_nothing_is_said() -> None:
    torch.save({"i": torch.ones(2, dtype=torch.int64), "c": torch.ones(1) + 1j}, "s.pth")
    assert any("--dtype bfloat16 changes nothing" in note for note in cs.convert("s.pth", dtype="bf16").notes)


@pytest.mark.long
def test_entries_that_share_without_end_are_looked_through_once() -> None:
    """Three thousand entries over one list of a million values: seconds, whether they are kept or only named."""
    shared: list[Any] = list(range(1000))
    for _ in range(10):
        shared = [shared, shared]
    torch.save({"model": {"w": torch.ones(2)}, **{f"e{i}": shared for i in range(3000)}}, "share.pth")
    assert any(note.startswith("left out: e0") for note in cs.filter("share.pth").notes)
    plan = cs.filter("share.pth", keep_extras=True)
    assert 0 < len(plan.carried.entries) < 10
    assert any("the file has too many entries to search" in note for note in plan.notes)


def test_long_text_is_counted_as_often_as_it_stands() -> None:
    text = "x" * 1_000_000
    torch.save({"w": torch.ones(2), "one": text, "texts": [text] * 5000}, "text.pth")
    plan = cs.filter("text.pth", keep_extras=True)
    assert plan.carried.entries == ("one",)


def test_names_that_are_no_text_are_not_carried_under_another() -> None:
    torch.save({"model": {"w": torch.ones(2), "model.x": 1}, 7: "number", "7": "text", "model.x": 2}, "names.pth")
    plan = cs.filter("names.pth", keep_extras=True)
    assert any("7 (its name is not a string)" in note for note in plan.notes)
    cs.apply(plan, "out.pth")
    found: Any = torch.load("out.pth", weights_only=True)
    assert found["7"] == "text"
    assert 7 not in found
    assert found["model.x"] == 2
    assert found["model"]["model.x"] == 1


def test_what_a_wrapper_sets_aside_is_named() -> None:
    torch.save({"n_averaged": torch.tensor(3), "module.w": torch.ones(1)}, "swa.pth")
    assert any("left out: n_averaged" in note for note in cs.filter("swa.pth", unwrap=True).notes)
    assert any("n_averaged (it is a tensor)" in n for n in cs.filter("swa.pth", unwrap=True, keep_extras=True).notes)


@pytest.mark.long
def test_a_round_trip_over_all_writable_formats_gives_the_same_bytes(ckpt: Any) -> None:
    torch.manual_seed(1)
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8,
              torch.float8_e4m3fn, torch.complex64]  # fmt: skip
    start = {f"t{i}": (torch.randn(3, 5) * 50).to(dtype) for i, dtype in enumerate(dtypes)}
    start |= {"scalar": torch.tensor(2.5), "none": torch.empty(0, 3)}
    save_file(start, "start.safetensors", metadata={"author": "us", "format": "pt"})
    steps = [
        ("start.safetensors", "a.pth"),
        ("a.pth", "shards", "--max-shard-size", "100B"),
        ("shards", "bins", "--max-shard-size", "100B", "--to", "pth"),
        ("bins", "distributed", "--to", "dcp", "--max-shard-size", "200B"),
        ("distributed", "end.safetensors"),
    ]
    for source, output, *options in steps:
        assert ckpt("convert", source, "-o", output, *options).code == 0
        assert ckpt("verify", output).code == 0
        assert ckpt("diff", source, output, "--values").code == 0
    end = load_file("end.safetensors")
    assert end.keys() == start.keys()
    for key, value in start.items():
        assert end[key].dtype == value.dtype
        assert end[key].reshape(-1).view(torch.uint8).equal(value.reshape(-1).view(torch.uint8)), key
    with safe_open("end.safetensors", "pt") as file:
        assert file.metadata()["author"] == "us"


UNWRAPPED: dict[str, Any] = {
    "convert": lambda *paths: cs.convert(paths[0], unwrap=True),
    "filter": lambda *paths: cs.filter(paths[0], include=["**"], unwrap=True),
    "rename": lambda *paths: cs.rename(paths[0], unwrap=True),
    "average": lambda *paths: cs.average(list(paths), unwrap=True),
    "merge": lambda *paths: cs.merge(list(paths), method="linear", weights=[1, 1], unwrap=True),
    "lora extract": lambda *paths: cs.lora_extract(*paths, unwrap=True, rank=1),
}


@pytest.mark.parametrize("verb", UNWRAPPED)
def test_unwrapping_what_has_no_wrappers_is_said(verb: str) -> None:
    for number, name in enumerate(("plain.pth", "too.pth")):
        torch.save({"a.weight": torch.eye(3) * number}, name)
    torch.save({"module.a.weight": torch.ones(3, 3)}, "wrapped.pth")
    (note, *_) = UNWRAPPED[verb]("plain.pth", "too.pth").notes
    assert note.startswith("--unwrap changes nothing: no keys of plain.pth")
    assert not [note for note in UNWRAPPED[verb]("wrapped.pth", "plain.pth").notes if "unwrap" in note]


@pytest.mark.parametrize(("dtype", "special"), [("float16", 3), ("bfloat16", 3), ("float64", 3), ("float8_e4m3fn", 1)])
def test_a_cast_says_what_was_nan_or_infinite_before(dtype: str, special: int) -> None:
    """Of float8_e4m3fn, which has no infinity, those are among the values that were cut."""
    torch.save({"w": torch.tensor([1.0, torch.nan, torch.inf, -torch.inf]), "b": torch.ones(2)}, "s.pth")
    said = f"NaN and infinite values come from the inputs: w ({special} value{'s' * (special > 1)})"
    assert said in cs.apply(cs.convert("s.pth", dtype=dtype), "out.safetensors").notes
    assert not [
        note for note in cs.apply(cs.convert("s.pth"), "copy.pth").notes if "come from" in note
    ]  # bytes as they are


def test_cut_values_do_not_hide_a_nan_in_an_average() -> None:
    torch.save({"w": torch.tensor([torch.nan, 448.0]).to(torch.float8_e4m3fn)}, "s.pth")
    notes = cs.apply(cs.average(["s.pth", "s.pth"]), "out.safetensors").notes
    twice, note = (one for one in notes if "small tensor" not in one)
    assert twice == "s.pth is given twice, so its weights count twice"
    assert note == "NaN and infinite values come from the inputs: w (1 value)"


def test_the_weights_of_an_adapter_that_was_there_go_with_its_configuration() -> None:
    Path("ad").mkdir()
    save_file({"base_model.model.q.lora_A.weight": torch.ones(2, 3)}, "ad/adapter_model.safetensors")
    Path("ad/adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    cs.apply(cs.convert("ad"), "out")
    cs.apply(cs.convert("ad"), "out", force=True)
    assert Path("out/adapter_model.safetensors").exists()
    cs.apply(cs.rename("ad", map={"base_model.model.**": "**"}), "out", force=True)
    assert sorted(one.name for one in Path("out").iterdir()) == ["ckptsurgeon.json", "model.safetensors"]
