"""What becomes of each tensor, from headers alone: every rule of the transplant."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.util.note_kind import NoteKind
from ckptsurgeon.util.notes import Note, is_serious

from ...helpers.declare import declare

F32 = "float32"


def save(name: str, shapes: dict[str, Any]) -> str:
    """A checkpoint of zeros: a shape, or (dtype, shape), or a tensor for each key."""
    tensors = {}
    for key, spec in shapes.items():
        if isinstance(spec, torch.Tensor):
            tensors[key] = spec
        elif spec and isinstance(spec[0], str):
            tensors[key] = torch.zeros(spec[1], dtype=getattr(torch, spec[0]))
        else:
            tensors[key] = torch.zeros(spec)
    torch.save(tensors, name)
    return name


def plan(source: dict[str, Any], destination: dict[str, Any], tied: str = "", **options: Any) -> cs.Plan:
    return cs.transplant(save("src.pth", source), declare("dst.yaml", destination, tied), **options)


def kinds(made: cs.Plan) -> dict[str, str]:
    return {step.key: step.kind for step in made.steps}


MODEL = {"encoder.w": (4, 4), "encoder.b": (4,), "encoder2.w": (4, 4), "decoder.out.w": (5, 4), "decoder.out.b": (5,)}


def test_the_same_model_is_copied() -> None:
    made = plan(MODEL, MODEL)
    assert set(kinds(made).values()) == {"copied"}
    assert made.counts == {"copied": 5}
    assert made.unexpected == ()


def test_counts_sum_to_the_number_of_tensors() -> None:
    made = plan(MODEL, {**MODEL, "new": (2,), "decoder.out.b": ("float16", (5,))}, exclude=["encoder2"])
    assert sum(made.counts.values()) == len(made.steps) == 6
    assert made.counts == {"copied": 3, "cast": 1, "initialised": 2}


def test_include_and_exclude_speak_of_modules() -> None:
    made = plan(MODEL, MODEL, include=["encoder", "decoder"], exclude=["decoder.out.b"])
    assert kinds(made) == {
        "encoder.w": "copied", "encoder.b": "copied", "encoder2.w": "initialised", "decoder.out.w": "copied",
        "decoder.out.b": "initialised",
    }  # fmt: skip
    by = {step.key: (step.reason, step.rule) for step in made.steps if step.reason}
    assert by["decoder.out.b"] == ("excluded", "--exclude decoder.out.b")
    assert by["encoder2.w"] == ("excluded", "not in --include")


def test_what_is_excluded_is_neither_missing_nor_unexpected() -> None:
    made = plan(MODEL, {"encoder.w": (4, 4)}, exclude=["encoder2", "decoder", "encoder.b"], strict=True)
    assert made.unexpected == ()
    assert made.excluded == 4


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            {"exclude": ["decodr"]},
            r"exclude=.decodr. matches none of the 5 source keys. Did you mean decoder \(2 keys\)",
        ),
        ({"include": ["w"]}, r"Did you mean \*\*.w\? It matches 3 keys"),
        ({"map": ["encodr=e"]}, "map=.encodr=e. matches none"),
        ({"reinit": ["decodr"]}, "reinit=.decodr. matches none of the 5 destination keys"),
        ({"require": ["decodr"]}, "require=.decodr. matches none of the 5 destination keys"),
        ({"on_mismatch": {"decodr": "init"}}, "on_mismatch=.decodr. matches none of the 5 destination keys"),
        ({"exclude": [""]}, "exclude is empty"),
        ({"include": [""]}, "include is empty"),
        ({"on_mismatch": "magic"}, "'magic' is not a policy"),
        ({"on_missing": "magic"}, "on_missing=.magic."),
        ({"dtype": "float31"}, "no dtype"),
        ({"map": ["encoder"]}, "no '='"),
    ],
)
def test_what_matches_nothing_or_means_nothing_is_usage(options: dict[str, Any], why: str) -> None:
    with pytest.raises(cs.CheckpointError, match=why) as caught:
        plan(MODEL, MODEL, **options)
    assert caught.value.exit_code == 2


def test_rules_rename_and_are_named_in_the_step() -> None:
    made = plan(MODEL, {"enc.w": (4, 4), "enc.b": (4,)}, map=["encoder=enc"])
    assert {step.key: (step.source_key, step.rule) for step in made.steps} == {
        "enc.w": ("encoder.w", "--map encoder=enc"),
        "enc.b": ("encoder.b", "--map encoder=enc"),
    }
    assert [key for _, key in made.unexpected] == ["encoder2.w", "decoder.out.w", "decoder.out.b"]


def test_two_keys_landing_on_one_name_both() -> None:
    with pytest.raises(cs.PlanError, match=r"encoder.w and encoder2.w of src.pth both become x.w") as caught:
        plan(MODEL, {"x.w": (4, 4)}, map=["{encoder,encoder2}=x"])
    assert caught.value.exit_code == 4


def test_a_rule_that_repeats_an_automatic_strip_is_a_note() -> None:
    source = {f"module.{key}": shape for key, shape in MODEL.items()}
    made = plan(source, MODEL, map=["module="])
    assert any("its prefix is stripped automatically" in note for note in made.notes)
    assert made.counts == {"copied": 5}


def test_messages_on_rules_of_a_map_file_name_its_line() -> None:
    wrapped = {f"module.{key}": shape for key, shape in MODEL.items()}
    Path("names.map").write_text("# names\nmodule=\n")
    notes = plan(wrapped, MODEL, map_file="names.map").notes
    assert "names.map, line 2: rule 'module=' is not needed: its prefix is stripped automatically" in notes
    Path("names.map").write_text("decodr=dec\n")
    with pytest.raises(cs.PatternError, match=r"^names\.map, line 1: rule 'decodr=dec' matches none of the 5 source"):
        plan(MODEL, MODEL, map_file="names.map")
    Path("names.map").write_text("out=head\n")
    many = {f"layers.{i}.out.w": (2,) for i in range(5)} | {"out.w": (2,)}
    notes = plan(many, {**many, "head.w": (2,)}, map_file="names.map").notes
    assert any(note.startswith("names.map, line 1: rule 'out=head' matches 1 key; **.out would") for note in notes)


def test_a_wrapper_that_both_have_stays() -> None:
    wrapped = {f"module.{key}": shape for key, shape in MODEL.items()}
    save("dst.pth", wrapped)
    made = cs.transplant(save("src.pth", wrapped), "dst.pth")
    assert made.counts == {"copied": 5}
    assert made.sources[0].stripped == ()


# Mismatches.

BIGGER = {**MODEL, "decoder.out.w": (7, 4), "decoder.out.b": (7,)}


def test_mismatches_are_listed_with_what_would_settle_them() -> None:
    with pytest.raises(cs.PlanError) as caught:
        plan(MODEL, BIGGER)
    error = caught.value
    assert error.exit_code == 4
    assert str(error) == (
        "shape mismatch: decoder.out.w is (5, 4) in src.pth, (7, 4) in dst.yaml; 1 other too: decoder.out.b. "
        'Use on_mismatch="decoder.out=init" (or pad, overlap, interpolate), or exclude="decoder.out".'
    )
    assert error.details == (
        "decoder.out.w is (5, 4) in src.pth, (7, 4) in dst.yaml: "
        "--on-mismatch decoder.out.w=init|pad|overlap|interpolate",
        "decoder.out.b is (5) in src.pth, (7) in dst.yaml: --on-mismatch decoder.out.b=init|pad|overlap|interpolate",
    )


def test_only_five_are_said_and_all_are_in_the_details() -> None:
    source = {f"l{i}.w": (2,) for i in range(9)}
    with pytest.raises(cs.PlanError, match="and 4 more") as caught:
        plan({**source, "a": (1,)}, {f"l{i}.w": (3,) for i in range(9)})
    assert len(caught.value.details) == 9
    assert 'on_mismatch="init" for all' in str(caught.value)


@pytest.mark.parametrize(
    ("policy", "kind"),
    [("init", "initialised"), ("pad", "resized"), ("overlap", "resized"), ("interpolate", "resized")],
)
def test_a_policy_for_all(policy: str, kind: str) -> None:
    made = plan(MODEL, BIGGER, on_mismatch=policy)
    assert kinds(made)["decoder.out.w"] == kind
    assert kinds(made)["encoder.w"] == "copied"


def test_the_last_scoped_policy_that_matches_wins_over_the_global_one() -> None:
    policies = ["pad", "decoder=overlap", "decoder.out.b=init"]
    made = plan(MODEL, BIGGER, on_mismatch=policies)
    steps = {step.key: step for step in made.steps}
    assert (steps["decoder.out.w"].op, steps["decoder.out.b"].op) == ("overlap", "init")
    assert steps["decoder.out.b"].reason == "mismatch"
    assert steps["decoder.out.w"].rule == "--on-mismatch decoder=overlap"


def test_a_policy_that_does_not_fit_leaves_the_error() -> None:
    with pytest.raises(cs.PlanError, match="shape mismatch"):
        plan(MODEL, BIGGER, on_mismatch="slice")
    with pytest.raises(cs.PlanError, match="shape mismatch"):
        plan({"a": (4,), "b": (1,)}, {"a": (4, 1), "b": (1,)}, on_mismatch="overlap")


def test_one_element_and_none_fit_each_other() -> None:
    made = plan({"a": (1,), "b": (), "c": (1,)}, {"a": (), "b": (1,), "c": (1,)})
    assert kinds(made) == {"a": "reshaped", "b": "reshaped", "c": "copied"}


# dtypes.


def test_dtypes_follow_the_destination() -> None:
    made = plan({"a": ("float16", (4,)), "n": ("int64", ())}, {"a": (4,), "n": ("int64", ())})
    assert kinds(made) == {"a": "cast", "n": "copied"}
    assert any("float16 to float32" in note and "--dtype keep" in note for note in made.notes)


def test_dtype_keep_follows_the_source() -> None:
    made = plan({"a": ("float16", (4,))}, {"a": (4,), "b": (2,)}, dtype="keep")
    assert {s.key: (s.kind, s.dtype) for s in made.steps} == {"a": ("copied", "float16"), "b": ("initialised", F32)}


def test_a_dtype_sets_all_floats_and_no_integer() -> None:
    made = plan({"a": (4,), "n": ("int64", ())}, {"a": (4,), "n": ("int64", ()), "b": (2,)}, dtype="bf16")
    assert {s.key: s.dtype for s in made.steps} == {"a": "bfloat16", "n": "int64", "b": "bfloat16"}


@pytest.mark.parametrize(
    ("source", "destination", "why"),
    [("float32", "int64", "fraction"), ("complex64", "float32", "complex"), ("int64", "bool", "boolean")],
)
def test_a_cast_that_loses_what_a_value_is_exits_4(source: str, destination: str, why: str) -> None:
    with pytest.raises(cs.PlanError, match=why) as caught:
        plan({"a": (source, (4,)), "b": (1,)}, {"a": (destination, (4,)), "b": (1,)})
    assert caught.value.exit_code == 4
    assert len(caught.value.details) == 1


# Missing, unexpected, gates.


def test_missing_is_initialised_or_an_error() -> None:
    made = plan({"a": (2,)}, {"a": (2,), "b": (2,)})
    assert {s.key: s.reason for s in made.steps} == {"a": "", "b": "missing"}
    with pytest.raises(cs.PlanError, match="1 tensor of the destination is in no source: b"):
        plan({"a": (2,)}, {"a": (2,), "b": (2,)}, on_missing="error")


def test_strict_makes_missing_and_unexpected_errors() -> None:
    with pytest.raises(cs.PlanError, match="missing from the sources: b; not used: c"):
        plan({"a": (2,), "c": (2,)}, {"a": (2,), "b": (2,)}, strict=True)


def test_reinit_wins_over_the_source() -> None:
    made = plan(MODEL, MODEL, reinit=["decoder"])
    assert made.counts == {"copied": 3, "initialised": 2}
    assert {s.reason for s in made.steps if s.kind == "initialised"} == {"reinit"}


def test_require_fails_unless_everything_under_it_is_loaded() -> None:
    plan(MODEL, MODEL, require=["encoder"])
    with pytest.raises(
        cs.PlanError,
        match=r"require=.encoder. is not met: 1 tensor that it matches comes from no source: encoder.b. encoder.b is left out",
    ):
        plan(MODEL, MODEL, require=["encoder"], exclude=["encoder.b"])


def test_nothing_loaded_is_an_error_that_says_what_would_help() -> None:
    with pytest.raises(cs.PlanError, match=r"nothing would be loaded.*map=.model=. would match 5 of 5"):
        plan({f"model.{key}": shape for key, shape in MODEL.items()}, MODEL)
    with pytest.raises(cs.PlanError, match=r'map="=net" would match 5 of 5'):
        plan(MODEL, {f"net.{key}": shape for key, shape in MODEL.items()})
    with pytest.raises(cs.PlanError, match=r"The source has x \(1\); the destination has y \(1\)"):
        plan({"x.a": (1,)}, {"y.b": (1,)})


def test_a_destination_that_does_not_say_how_to_initialise_is_an_error_before_anything_is_written() -> None:
    save("src.pth", {"a": (2,)})
    with open("dst.yaml", "w") as file:
        file.write("model: {tensors: {a: {shape: [2]}, b: {shape: [2]}}}")
    with pytest.raises(cs.PlanError, match="dst.yaml does not say how to initialise b, and no source"):
        cs.transplant("src.pth", "dst.yaml")


# Checkpoints as destinations, ties, several sources.


def test_a_destination_checkpoint_keeps_what_no_source_gives() -> None:
    save("dst.pth", BIGGER)
    made = cs.transplant(save("src.pth", MODEL), "dst.pth", on_mismatch="init", exclude=["encoder2"])
    assert made.counts == {"copied": 2, "kept": 3}
    assert made.sources[-1].role == "destination"


TIED = {"embed.w": (5, 4), "out.w": (5, 4), "b": (5,)}
TIES = "  tied: [[embed.w, out.w]]\n"


@pytest.mark.parametrize("present", ["embed.w", "out.w"])
def test_any_alias_in_the_source_serves_a_tied_tensor(present: str) -> None:
    made = plan({present: (5, 4), "b": (5,)}, TIED, TIES)
    assert {s.key: (s.kind, s.source_key, s.tied_to) for s in made.steps if s.key != "b"} == {
        "embed.w": ("copied", present, ""),
        "out.w": ("copied", present, "embed.w"),
    }
    assert made.unexpected == ()


def test_two_aliases_must_be_equal() -> None:
    a, b = torch.randn(5, 4), torch.randn(5, 4)
    plan({"embed.w": a, "out.w": a, "b": (5,)}, TIED, TIES)
    equal = plan({"embed.w": a, "out.w": a.clone(), "b": (5,)}, TIED, TIES)
    assert len(equal.equal) == 1  # apply will look
    with pytest.raises(
        cs.PlanError, match=r"embed.w and out.w of src.pth are not equal, but the destination ties them"
    ):
        plan({"embed.w": a, "out.w": b, "b": (5,)}, TIED, TIES)


def test_reinit_of_one_alias_is_reinit_of_the_tensor() -> None:
    made = plan(TIED, TIED, TIES, reinit=["embed"])
    assert kinds(made) == {"embed.w": "initialised", "out.w": "initialised", "b": "copied"}


def test_reinit_of_the_other_alias_is_reinit_of_the_tensor_too() -> None:
    made = plan(TIED, TIED, TIES, reinit=["out"])
    assert kinds(made) == {"embed.w": "initialised", "out.w": "initialised", "b": "copied"}


def test_later_sources_go_over_earlier_ones() -> None:
    save("a.pth", {"x": (2,), "y": (2,)})
    save("b.pth", {"y": (2,), "z": (2,)})
    made = cs.transplant(["a.pth", "b.pth"], declare("dst.yaml", {"x": (2,), "y": (2,), "z": (2,)}))
    assert {s.key: made.sources[s.source].name for s in made.steps if s.source is not None} == {
        "x": "a.pth", "y": "b.pth", "z": "b.pth",
    }  # fmt: skip
    assert any("1 tensor in several sources" in note for note in made.notes)


def test_a_pattern_may_match_in_any_source() -> None:
    save("a.pth", {"x": (2,), "y": (2,)})
    save("b.pth", {"z": (2,)})
    made = cs.transplant(["a.pth", "b.pth"], declare("dst.yaml", {"x": (2,), "z": (2,)}), exclude=["y"])
    assert made.counts == {"copied": 2}


def test_sources_of_the_same_name_are_told_apart() -> None:
    import os

    os.makedirs("p")
    os.makedirs("q")
    save("p/x.pth", {"a": (2,)})
    save("q/x.pth", {"b": (2,)})
    made = cs.transplant(["p/x.pth", "q/x.pth"], declare("dst.yaml", {"a": (2,), "b": (2,)}))
    assert [source.name for source in made.sources] == ["x.pth", "q/x.pth"]


def test_values_that_are_no_plain_bytes_are_said() -> None:
    torch.save({"a": torch.ones(2), "s": torch.eye(3).to_sparse()}, "src.pth")
    declare("dst.yaml", {"a": (2,), "s": (3, 3)})
    with pytest.raises(cs.FormatError, match=r"s of src.pth cannot be copied: it is sparse. Use exclude=.s.") as caught:
        cs.transplant("src.pth", "dst.yaml")
    assert caught.value.exit_code == 3
    assert cs.transplant("src.pth", "dst.yaml", exclude=["s"]).counts == {"copied": 1, "initialised": 1}


def test_a_pattern_that_matches_more_deeper_down_gets_a_note() -> None:
    source = {"bias": (1,), **{f"l{i}.bias": (1,) for i in range(5)}}
    made = plan(source, source, exclude=["bias"])
    assert any("**.bias would match 6" in note for note in made.notes)


def test_planning_reads_headers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.storage.read.local import LocalFile

    save("src.pth", {"a": torch.zeros(1_000_000)})
    declare("dst.yaml", {"a": (1_000_000,)})
    total = 0
    real = LocalFile.read

    def counted(self: LocalFile, offset: int, nbytes: int) -> bytes:
        nonlocal total
        total += nbytes
        return real(self, offset, nbytes)

    monkeypatch.setattr(LocalFile, "read", counted)
    cs.transplant("src.pth", "dst.yaml")
    assert total < 100_000  # the directory, which is looked for in the last 64 KiB, and the pickle


# The plan as JSON.


def test_a_plan_goes_through_json_unchanged() -> None:
    made = plan({**MODEL, "x": (1,)}, {**BIGGER, "new": (3,)}, on_mismatch=["pad"], exclude=["encoder2"], seed=7)
    text = json.dumps(made.to_json())
    again = cs.Plan.from_json(json.loads(text))
    assert again == made
    assert again.sha256() == made.sha256()
    assert json.dumps(again.to_json()) == text
    first = made.to_json()["steps"][0]
    assert first == {
        "key": "encoder.w", "op": "copy", "class": "copied",
        "from": {"source": "src.pth", "key": "encoder.w", "dtype": "float32", "shape": [4, 4]},
        "rule": None, "policy": None, "reason": None, "dtype": "float32", "shape": [4, 4], "tied_to": None,
    }  # fmt: skip


def test_serious_notes_stay_serious_in_json_which_does_not_change_the_plan() -> None:
    made = replace(plan(MODEL, MODEL), notes=("a remark", Note(NoteKind.LAYER_GAP, "no tensor of layer 3")))
    data = json.loads(json.dumps(made.to_json()))
    assert (data["notes"], data["serious_notes"]) == (["a remark", "no tensor of layer 3"], [1])
    again = cs.Plan.from_json(data)
    assert [is_serious(note) for note in again.notes] == [False, True]
    assert again.to_json() == data
    plain = replace(made, notes=tuple(map(str, made.notes)))
    assert plain.to_json()["serious_notes"] == []
    assert "serious_notes" not in replace(made, notes=()).to_json()
    assert plain.sha256() == made.sha256() == again.sha256()


def test_notes_of_a_plan_that_does_not_say_which_are_serious_are_all_serious() -> None:
    data = replace(plan(MODEL, MODEL), notes=("a remark", "no tensor of layer 3")).to_json()
    del data["serious_notes"]  # as earlier versions wrote plans
    assert [is_serious(note) for note in cs.Plan.from_json(data).notes] == [True, True]


def test_the_same_inputs_give_the_same_plan() -> None:
    assert plan(MODEL, MODEL).to_json()["steps"] == plan(MODEL, MODEL).to_json()["steps"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda p: 3, "not a plan"),
        (lambda p: {**p, "kind": "x"}, "not a plan"),
        (lambda p: {**p, "version": 99}, "version 99"),
        (lambda p: {k: v for k, v in p.items() if k != "steps"}, "'steps' is missing"),
        (lambda p: {**p, "steps": [{**p["steps"][0], "op": "rm -rf"}]}, "unknown op 'rm -rf'"),
        (lambda p: {**p, "steps": [{**p["steps"][0], "from": {"source": "other", "key": "a"}}]}, "'other' is missing"),
        (lambda p: {**p, "sources": [{"name": 3}]}, "it has 3 where a string is needed"),
        (lambda p: {**p, "seed": "x"}, "cannot be read"),
        (lambda p: {**p, "seed": -1}, "its seed is -1"),
        (lambda p: {**p, "version": True}, "version True"),
        *(
            (
                lambda p, places=places: {**p, "notes": ["a", "b"], "serious_notes": places},
                r"cannot be read: the field serious_notes is .*, not a list of indices of its 2 notes",
            )
            for places in (3, None, {"a": 1}, ["a"], [[]], [-1], [2], [True], [0.0])
        ),
        (lambda p: {**p, "steps": [{**p["steps"][0], "from": None}]}, "has no input"),
        (lambda p: {**p, "steps": [{**p["steps"][0], "rule": {"a": 1}}]}, "where a string is needed"),
    ],
)
def test_what_is_no_plan_is_usage(change: Any, why: str) -> None:
    data = plan(MODEL, MODEL).to_json()
    with pytest.raises(cs.ConfigError, match=why):
        cs.Plan.from_json(change(data))


# What contradicts itself, and what is said of it.


def test_two_policies_for_everything_contradict_each_other() -> None:
    with pytest.raises(cs.ConfigError, match="on_mismatch=.init. and on_mismatch=.pad. contradict"):
        plan(MODEL, MODEL, on_mismatch=["init", "pad"])
    assert plan(MODEL, MODEL, on_mismatch=["init", "init", "decoder=pad"]).counts == {"copied": 5}


def test_options_take_texts() -> None:
    with pytest.raises(cs.ConfigError, match="exclude is 5, not a pattern or a list of patterns"):
        plan(MODEL, MODEL, exclude=5)
    with pytest.raises(cs.ConfigError, match="include is .3., not"):
        plan(MODEL, MODEL, include=[3])
    none = plan(MODEL, MODEL, exclude=None, include=None, on_mismatch=None, map=None)
    assert none.counts == {"copied": 5}
    assert plan(MODEL, MODEL, dtype=torch.bfloat16).counts == {"cast": 5}
    assert plan({"enc.w": (4, 4)}, MODEL, map={"enc": "encoder"}).counts["copied"] == 1


@pytest.mark.parametrize("seed", [-1, 2**63, "x", None, 1.5])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(cs.ConfigError, match="is not a valid seed|seed is .*, not a whole number"):
        plan(MODEL, MODEL, seed=seed)


def test_a_padded_tensor_that_cannot_be_drawn_is_an_error_before_anything_is_written() -> None:
    save("src.pth", {"a": (2,)})
    with open("dst.yaml", "w") as file:
        file.write("model: {tensors: {a: {shape: [3]}}}")
    for policy in ("pad", "overlap"):
        with pytest.raises(cs.PlanError, match="does not say how to initialise a, and no source has all"):
            cs.transplant("src.pth", "dst.yaml", on_mismatch=policy)


def test_what_is_drawn_is_not_cast_to_a_type_without_a_sign() -> None:
    with pytest.raises(
        cs.PlanError, match="b is float32 in the destination, float8_e8m0fnu as requested: .* without a sign"
    ) as error:
        plan({"n": ("int64", ())}, {"b": (2,), "n": ("int64", ())}, dtype="float8_e8m0fnu", on_missing="init")
    assert "exclude" not in error.value.hint  # b is in no source


def test_dtype_is_for_real_floats_those_that_are_kept_too() -> None:
    torch.save({"a": torch.ones(2)}, "src.pth")
    torch.save({"a": torch.ones(2), "b": torch.ones(2), "n": torch.ones(2, dtype=torch.int64)}, "dst.pth")
    made = cs.transplant("src.pth", "dst.pth", dtype="bf16")
    assert {step.key: step.dtype for step in made.steps} == {"a": "bfloat16", "b": "bfloat16", "n": "int64"}
    cs.apply(made, "out.safetensors")
    assert cs.verify("out.safetensors").compared == 3
    torch.save({"c": torch.ones(2, dtype=torch.complex64)}, "c.pth")
    assert cs.transplant("c.pth", "c.pth", dtype="bf16").steps[0].dtype == "complex64"


def test_the_first_option_that_excludes_is_named() -> None:
    made = plan(MODEL, MODEL, exclude=["decoder.out.b", "decoder"])
    assert {step.key: step.rule for step in made.steps}["decoder.out.b"] == "--exclude decoder.out.b"


def test_an_excluded_alias_explains_its_tie() -> None:
    made = plan(
        {"x": (2,), "y": (3,)}, {"a": (2,), "b": (2,), "y": (3,)}, "  tied: [[a, b]]", map=["x=b"], exclude=["x"]
    )
    assert [(step.reason, step.rule) for step in made.steps[:1]] == [("excluded", "--exclude x")]


def test_aliases_of_different_shapes_are_an_error() -> None:
    with pytest.raises(cs.PlanError, match="a and b of src.pth are not equal"):
        plan({"a": (2,), "b": (3,)}, {"a": (2,), "b": (2,)}, "  tied: [[a, b]]")


def test_casting_to_half_the_size_is_no_growth() -> None:
    assert not any("casting" in note for note in plan({"a": (1000,)}, {"a": ("float16", (1000,))}).notes)
    assert any("casting" in note for note in plan({"a": ("float16", (1000,))}, {"a": (1000,)}).notes)


def test_the_last_source_s_metadata_wins() -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, "one.safetensors", metadata={"who": "one", "only": "1"})
    save_file({"b": torch.ones(1)}, "two.safetensors", metadata={"who": "two"})
    declare("dst.yaml", {"a": (1,), "b": (1,)})
    made = cs.transplant(["one.safetensors", "two.safetensors"], "dst.yaml")
    assert dict(made.metadata) == {"who": "two", "only": "1"}


def test_sources_of_one_name_are_told_apart_without_absolute_paths(tmp_path: Any) -> None:
    for folder in ("p", "q"):
        (tmp_path / folder).mkdir()
        torch.save({"a": torch.ones(1)}, tmp_path / folder / "x.pth")
    declare("dst.yaml", {"a": (1,)})
    made = cs.transplant([str(tmp_path / "p/x.pth"), str(tmp_path / "q/x.pth"), str(tmp_path / "q/x.pth")], "dst.yaml")
    assert [source.name for source in made.sources][:2] == ["x.pth", "q/x.pth"]
    assert not any(source.name.startswith("/") for source in made.sources)
    assert len({source.name for source in made.sources}) == 3


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"exclude": ["**"]}, r'because of exclude="\*\*" \(5\)'),
        ({"reinit": ["**"]}, r'because of reinit="\*\*" \(5\)'),
        (
            {"include": ["decoder"], "exclude": ["decoder"]},
            r'because of not in include \(3\), exclude="decoder" \(2\)',
        ),
    ],
)
def test_options_that_leave_everything_are_named(options: dict[str, Any], hint: str) -> None:
    with pytest.raises(cs.PlanError, match=hint):
        plan(MODEL, MODEL, **options)


def test_what_is_required_and_not_loaded_says_why() -> None:
    with pytest.raises(
        cs.PlanError, match="No source has a tensor named new; if it has another name, rename it with map"
    ):
        plan(MODEL, {**MODEL, "new": (2,)}, require=["new"])
    with pytest.raises(cs.PlanError, match="decoder.out.w is initialised by reinit=.decoder."):
        plan(MODEL, MODEL, require=["decoder"], reinit=["decoder"])
    with pytest.raises(cs.PlanError) as caught:
        plan(MODEL, {**MODEL, "new": (2,), "other": (1,)}, require=["encoder", "new"])
    assert caught.value.details == ("new",)


def test_the_note_on_growth_counts_a_tied_tensor_once() -> None:
    source = {"embed": ("float16", (1000, 2)), "other": ("float16", (500, 2))}
    made = plan(source, {"embed": (1000, 2), "other": (500, 2), "head": (1000, 2)}, tied="  tied: [[embed, head]]\n")
    assert any("enlarges tensors from 6.0 kB to 12.0 kB; --dtype" in note for note in made.notes), made.notes


def test_a_tensor_that_starts_anew_is_not_said_to_come_from_the_last_source() -> None:
    sources = [save("one.pth", MODEL), save("two.pth", MODEL)]
    made = cs.transplant(sources, declare("dst.yaml", MODEL), reinit=["decoder"])
    (said,) = [note for note in made.notes if "in several sources" in note]
    assert (said.startswith("3 tensors"), "decoder" in said) == (True, False), said
