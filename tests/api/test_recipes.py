"""Recipes compile to the plan that flags give, say what must come of it, and name what they do not know."""

from __future__ import annotations

import inspect
import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cryptography.hazmat.primitives import serialization as keys
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.api.recipes import with_absolute_paths
from ckptsurgeon.util.arguments import NAMES, as_fields

from ..helpers.transformers_models import BERT, saved


@pytest.fixture(autouse=True)
def files() -> None:
    torch.manual_seed(0)
    for name in ("a", "b"):
        state = {
            "encoder.w": torch.randn(4, 3),
            "encoder.b": torch.randn(4),
            "decoder.w": torch.randn(2, 4),
            "n": torch.tensor(3),
        }
        torch.save({"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 7}, f"{name}.pth")
    Path("dst.yaml").write_text(
        "model:\n  tensors:\n    encoder.w: {shape: [4, 3]}\n    encoder.b: {shape: [4]}\n    head.w: {shape: [2, 4], init: normal}\n"
    )


@pytest.fixture
def adapter() -> None:
    """Beside the other files an adapter for the encoder of a, and a model of transformers."""
    Path("adapter").mkdir()
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["encoder"]}
    Path("adapter/adapter_config.json").write_text(json.dumps(said))
    factors = {"lora_A": torch.randn(2, 3), "lora_B": torch.randn(4, 2)}
    save_file(
        {f"base_model.model.encoder.{k}.weight": v for k, v in factors.items()}, "adapter/adapter_model.safetensors"
    )
    save_file({"encoder.weight": torch.randn(4, 3), "encoder.bias": torch.ones(4)}, "base.safetensors")
    save_file({"encoder.weight": torch.randn(4, 3), "encoder.bias": torch.ones(4)}, "tuned.safetensors")
    saved("bert", BERT, "BertModel")


def recipe(name: str = "recipe.yaml", **fields: Any) -> str:
    Path(name).write_text(yaml.safe_dump(fields, sort_keys=False))
    return name


CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "transplant": (
        ["transplant", "a.pth", "dst.yaml", "--exclude", "decoder", "--exclude", "n", "--require", "encoder.b", "--seed", "3"],
        {"source": "a.pth", "destination": "dst.yaml", "exclude": ["decoder", "n"], "require": ["encoder.b"], "seed": 3},
    ),
    "rename": (["rename", "a.pth", "--map", "module="], {"source": "a.pth", "map": ["module="]}),
    "resize": (
        [
            "resize", "bert", "--set", "num_hidden_layers=1", "--layers", "first", "--set", "intermediate_size=40",
            "--new-channels", "copy", "--noise", "0.25", "--seed", "5",
        ],
        {
            "source": "bert", "set": {"num_hidden_layers": 1, "intermediate_size": 40}, "layers": "first",
            "new_channels": "copy", "noise": 0.25, "seed": 5,
        },
    ),
    "filter": (
        ["filter", "a.pth", "--include", "encoder", "--unwrap"], {"source": "a.pth", "include": ["encoder"], "unwrap": True},
    ),
    "convert": (["convert", "a.pth", "--dtype", "bf16"], {"source": "a.pth", "dtype": "bf16"}),
    "average": (["average", "a.pth", "b.pth", "--ema", "0.9"], {"sources": ["a.pth", "b.pth"], "ema": 0.9}),
    "merge": (
        ["merge", "a.pth", "b.pth", "-m", "ties", "--base", "b.pth", "--unwrap", "--weights", "1,2", "--param", "density:encoder=0.5"],
        {
            "models": ["a.pth", "b.pth"], "method": "ties", "base": "b.pth", "unwrap": True,
            "parameters": {"weight": [1.0, 2.0], "density": {"encoder": 0.5}},
        },
    ),
    "lora merge": (
        ["lora", "merge", "base.safetensors", "adapter", "--weights", "0.5", "--dtype", "bf16"],
        {"base": "base.safetensors", "adapters": "adapter", "weights": [0.5], "dtype": "bf16"},
    ),
    "lora concat": (
        ["lora", "concat", "adapter", "adapter", "--weights", "0.5,2", "--dtype", "float64"],
        {"adapters": ["adapter", "adapter"], "weights": [0.5, 2.0], "dtype": "float64"},
    ),
    "lora convert": (
        ["lora", "convert", "adapter", "--to", "kohya", "--component", "unet", "--dtype", "float64"],
        {"adapter": "adapter", "to": "kohya", "component": "unet", "dtype": "float64"},
    ),
    "lora resize": (
        ["lora", "resize", "adapter", "--rank", "1", "--energy", "0.9", "--dtype", "float64"],
        {"adapter": "adapter", "rank": 1, "energy": 0.9, "dtype": "float64"},
    ),
    "lora extract": (
        ["lora", "extract", "tuned.safetensors", "base.safetensors", "--rank", "2", "--alpha", "4", "--include", "encoder.weight"],
        {"tuned": "tuned.safetensors", "base": "base.safetensors", "rank": 2, "alpha": 4, "include": ["encoder.weight"]},
    ),
}  # fmt: skip


@pytest.mark.costly
@pytest.mark.usefixtures("adapter")
@pytest.mark.parametrize("verb", CASES)
def test_flags_and_recipe_compile_to_the_same_plan(verb: str, ckpt: Any) -> None:
    flags, fields = CASES[verb]
    from_flags = json.loads(ckpt(*flags, "-n", "--json").out)
    from_recipe = json.loads(ckpt("apply", recipe(verb=verb, **fields), "-n", "--json").out)
    assert from_recipe == {**from_flags, "notes": [as_fields(note, NAMES) for note in from_flags["notes"]]}
    to = "" if verb in FOLDERS else ".safetensors"
    assert ckpt("apply", recipe(verb=verb, output=f"r{to or '/'}", **fields)).code == 0
    assert ckpt(*flags, "-o", f"f{to or '/'}").code == 0
    for name in [""] if to else ["/adapter_model.safetensors", "/adapter_config.json"]:
        assert Path(f"r{to}{name}").read_bytes() == Path(f"f{to}{name}").read_bytes()
    assert cs.verify(f"r{to}").ok


FOLDERS = ("lora extract", "lora concat", "lora resize")
"""The verbs whose output is a folder."""
INPUTS = ("source", "sources", "models", "base", "adapters", "adapter", "tuned", "destination")


@pytest.mark.usefixtures("adapter")
@pytest.mark.parametrize("verb", CASES)
def test_what_an_output_carries_is_a_recipe_that_makes_it_again(verb: str) -> None:
    """Its verb, arguments and seed are fields of a recipe; paths are those of its sources."""
    fields = CASES[verb][1]
    folder = verb in FOLDERS
    cs.apply(recipe(verb=verb, output="out/" if folder else "out.safetensors", **fields))
    written = Path("out/adapter_model.safetensors" if folder else "out.safetensors")
    carried = json.loads(cs.open_checkpoint("out" if folder else written).recipe or "")
    inputs = {name: value for name, value in fields.items() if name in INPUTS}
    seed = {"seed": carried["seed"]} if carried["seed"] else {}
    written.rename("first")
    cs.apply(
        recipe("again.yaml", verb=carried["verb"], **{**carried["arguments"], **inputs, **seed}),
        written.parent if folder else written,
        force=True,
    )
    assert written.read_bytes() == Path("first").read_bytes()


def test_every_verb_that_plans_has_a_case() -> None:
    from ckptsurgeon.api import recipes

    assert set(CASES) == set(recipes._VERBS)


def test_paths_are_relative_to_the_recipe(ckpt: Any) -> None:
    Path("sub").mkdir()
    name = recipe(
        "sub/r.yaml", source="../a.pth", destination="../dst.yaml", output="out/", map={"decoder.w": "head.w"}
    )
    done = ckpt("apply", name)
    assert done.code == 0, done
    assert "next: ckpt verify sub/out/" in done.out
    assert Path("sub/out/model.safetensors").exists()


TOKENS = {"a": ["<blank>", "x", "y"], "b": ["<blank>", "y", "z", "q"]}
BY_TOKEN = "vocab_keys: [embed.weight]\n"
MERGE = f"verb: merge\nmodels: [a/m.safetensors, b/m.safetensors]\nmethod: linear\nvocab: union\n{BY_TOKEN}parameters: {{weight: [0.5, 0.5]}}\n"


@pytest.mark.parametrize(
    "fields",
    [
        f"source: a/m.safetensors\ndestination: b/m.safetensors\nvocab: a/t.txt:b/t.txt\n{BY_TOKEN}",
        f"{MERGE}tokens: [a/m.safetensors=a/t.txt, b/m.safetensors=b/t.txt]\n",
        f"{MERGE}tokens: {{a/m.safetensors: a/t.txt, b/m.safetensors: b/t.txt}}\n",
    ],
)
def test_so_are_token_lists_in_pairs(fields: str) -> None:
    for name, tokens in TOKENS.items():
        Path("sub", name).mkdir(parents=True)
        Path("sub", name, "t.txt").write_text("".join(f"{one}\n" for one in tokens))
        save_file({"embed.weight": torch.ones(len(tokens), 4)}, f"sub/{name}/m.safetensors")
    Path("sub/r.yaml").write_text(fields)
    (step,) = cs.load_plan("sub/r.yaml").steps
    assert step.shape == (5 if "merge" in fields else 4, 4)


def test_what_is_given_beside_a_recipe_wins() -> None:
    receipt = cs.apply(
        recipe(verb="filter", source="a.pth", output="x.safetensors", to="safetensors"), "y.pth", to="pth"
    )
    assert receipt.output == "y.pth"
    assert not Path("x.safetensors").exists()


def test_expected_facts_are_held() -> None:
    fields = {"source": "a.pth", "destination": "dst.yaml", "output": "out.pth"}
    met = {"count": 3, "encoder": "copied", "head.**": "initialised", "**.w": 2}
    cs.apply(recipe(**fields, **{"assert": met}))
    for wrong, why in (
        ({"count": 4}, "count is 3, not 4"),
        ({"**": "copied"}, "head.w is initialised, not copied"),
        ({"encoder": 3}, "encoder is 2 tensors, not 3"),
    ):
        with pytest.raises(cs.PlanError, match=why) as caught:
            cs.apply(recipe(**{**fields, "output": "no.pth"}, **{"assert": wrong}))
        assert caught.value.exit_code == 4
    assert not Path("no.pth").exists()
    cs.apply(recipe(**{**fields, "output": "none.pth"}, **{"assert": {"nothing": 0}}))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (
            {"verb": "filter", "source": "a.pth", "exlude": ["x"]},
            "the verb filter has no argument 'exlude'. Did you mean exclude",
        ),
        ({"verb": "filter", "source": "a.pth", "seed": 3}, "the verb filter has no argument 'seed'. Its arguments are"),
        ({"verb": "fliter", "source": "a.pth"}, "the verb 'fliter' is unknown. Did you mean filter"),
        ({"verb": "lora_merge", "source": "a.pth"}, "the verb 'lora_merge' is unknown. Did you mean lora merge?"),
        (
            {"verb": "lora merge", "base": "a.pth", "adapter": "x"},
            "the verb lora merge has no argument 'adapter'. Did you mean adapters?",
        ),
        (
            {"verb": "lora extract", "tuned": "a.pth", "base": "b.pth", "rnk": 3},
            "the verb lora extract has no argument 'rnk'. Did you mean rank?",
        ),
        ({"verb": "lora extract", "tuned": "a.pth", "base": "b.pth", "rank": 2.5}, "rank is 2.5, not a whole number"),
        (
            {"verb": "lora merge", "base": "a.pth", "adapters": {"a": 1}},
            "adapters is {'a': 1}, not a path or a list of paths",
        ),
        ({"source": "a.pth"}, "it has no verb"),
        ({"verb": "filter"}, "filter needs source"),
        ({"verb": "filter", "source": "a.pth", "output": 3}, "output is 3, not a string"),
        ({"verb": "filter", "source": "a.pth"}, "no output given"),
        ({"verb": "filter", "source": "a.pth", "output": "o.pth", "assert": 3}, "assert is 3, not a map"),
        (
            {"verb": "filter", "source": "a.pth", "output": "o.pth", "assert": {"**": "coppied"}},
            "'coppied' is not a valid value",
        ),
        (
            {"verb": "filter", "source": "a.pth", "output": "o.pth", "assert": {"nosuch": 1}},
            "assert nosuch matches none",
        ),
        (
            {"verb": "filter", "source": "a.pth", "output": "o.pth", "exclude": 5},
            "exclude is 5, not a pattern or a list of patterns",
        ),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(cs.CheckpointError, match=why) as caught:
        cs.apply(recipe(**fields))
    assert caught.value.exit_code == 2
    assert not Path("o.pth").exists()


FILTER = {"verb": "filter", "source": "a.pth"}
RENAME = {"verb": "rename", "source": "a.pth"}
MERGE = {"verb": "merge", "models": ["a.pth", "b.pth"], "method": "linear"}
TRANSPLANT = {"source": "a.pth", "destination": "dst.yaml"}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"verb": ["rename"], "source": "a.pth"}, "the verb \\['rename'\\] is unknown"),
        ({**FILTER, "root": ["a"]}, "root is \\['a'\\], not a string"),
        ({**FILTER, "unwrap": "no"}, "unwrap is 'no', not true or false"),
        ({**FILTER, "source": None}, "source is None, not a path"),
        ({**FILTER, "source": ["a.pth", "b.pth"]}, "source is .*, not a path"),
        ({**FILTER, "exclude": {"a": "copied"}}, "exclude is {'a': 'copied'}, not a pattern or a list of patterns"),
        ({**FILTER, "include": ["a", None]}, "include is .*, not a pattern or a list of patterns"),
        ({**FILTER, "assert": {"count": True}}, "assert count: True is not a number"),
        ({**FILTER, "assert": {"count": "copied"}}, "assert count: 'copied' is not a number"),
        ({**FILTER, "assert": []}, "assert is \\[\\], not a map"),
        ({**FILTER, "to": ["pth"]}, "to is \\['pth'\\], not a string"),
        ({**RENAME, "map": {"module": None}}, "in the argument map, 'module' has no value. Write '' for an empty value"),
        ({**RENAME, "map": [{"module": "x"}]}, "map is .*, not rules FROM=TO or a map from strings to strings"),
        ({**RENAME, "map": {"module": 3}}, "map is {'module': 3}, not rules"),
        ({**RENAME, "map": {3: "x"}}, "map is {3: 'x'}, not rules"),
        ({**RENAME, "operations": [3]}, "operations is \\[3\\], not a path or a list of maps"),
        ({**RENAME, "map_file": 3}, "map_file is 3, not a path"),
        ({"verb": "average", "sources": "a.pth"}, "sources is 'a.pth', not a list of paths"),
        ({"verb": "average", "sources": ["a.pth", "b.pth"], "ema": "x"}, "ema is 'x', not a number"),
        ({"verb": "average", "sources": ["a.pth", "b.pth"], "ema": True}, "ema is True, not a number"),
        ({**MERGE, "weights": [0.5, "x"]}, "weights is .*, not a list of numbers"),
        ({**MERGE, "parameters": 3}, "parameters is 3, not a map of parameters or strings"),
        ({"verb": "convert", "source": "a.pth", "metadata": {"epoch": 3}}, "metadata is {'epoch': 3}, not a map from strings"),
        ({"verb": "convert", "source": "a.pth", "dtype": 16}, "dtype is 16, not the name of a dtype"),
        ({**TRANSPLANT, "seed": "x"}, "seed is 'x', not a whole number"),
        ({**TRANSPLANT, "seed": True}, "seed is True, not a whole number"),
        ({**TRANSPLANT, "vocab": 3}, "vocab is 3, not a string SRC:DST or two paths"),
        ({**TRANSPLANT, "on_mismatch": 3}, "on_mismatch is 3, not a policy, a list, or a map from patterns to policies"),
        ({**TRANSPLANT, "on_missing": None}, "on_missing is None, not a string"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_named(fields: dict[str, Any], why: str, ckpt: Any) -> None:
    with pytest.raises(cs.ConfigError, match=f"recipe.yaml: (the (argument|field) )?{why}"):
        cs.apply(recipe(**{"output": "o.pth", **fields}))
    assert ckpt("apply", recipe(**fields), "-n").code == 2
    assert not Path("o.pth").exists()


def test_every_argument_of_a_verb_has_a_type_that_recipes_check() -> None:
    from ckptsurgeon.api import recipes
    from ckptsurgeon.api.inputs import argument_types

    for verb in recipes._VERBS.values():
        for parameter in inspect.signature(verb).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                continue  # no field of a recipe
            assert parameter.annotation in argument_types.KINDS, f"{verb.__name__} {parameter}"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"verb": "filter", "source": "../a.pth"}, "../a.pth"),
        ({"verb": "merge", "method": "linear", "models": ["FILES/a.pth", "../b.pth"]}, "../b.pth"),
        ({"source": "FILES/a.pth", "destination": "../dst.yaml"}, "../dst.yaml"),
        ({"verb": "rename", "source": "FILES/a.pth", "map_file": "./map"}, "./map"),
    ],
)
def test_a_recipe_that_was_moved_says_what_its_paths_are_relative_to(
    fields: dict[str, Any], path: str, ckpt: Any
) -> None:
    os.makedirs("else/where")
    text = yaml.safe_dump({**fields, "output": "../o.pth"}).replace("FILES", os.getcwd())
    Path("else/where/r.yaml").write_text(text)
    said = f"The recipe says {path}: its paths are relative to the folder of else/where/r.yaml."
    for last in ((), ("-n",)):
        assert said in " ".join(ckpt("apply", "else/where/r.yaml", *last).err.split())


def test_an_error_on_another_path_has_no_hint_on_the_recipe(ckpt: Any) -> None:
    name = recipe(verb="filter", source=f"{os.getcwd()}/n")
    assert "The recipe says" not in ckpt("apply", name, "-n").err
    assert "The recipe says" not in ckpt("apply", recipe(verb="filter", source="a.pth", include="z"), "-n").err


def test_what_is_left_empty_is_as_if_it_were_not_there() -> None:
    plan = cs.load_plan(recipe(**FILTER, include=None, root=None, **{"assert": None}))
    assert plan.to_json() == cs.filter("a.pth").to_json()


def test_one_text_is_one_pattern() -> None:
    assert len(cs.load_plan(recipe(**FILTER, exclude="module.decoder")).steps) == 3


def test_a_map_in_python_strips_with_an_empty_text_only() -> None:
    with pytest.raises(cs.ConfigError, match="in the argument map, 'module' has no value"):
        cs.rename("a.pth", map={"module": None})  # type: ignore[dict-item]
    assert "encoder.w" in {step.key for step in cs.rename("a.pth", map={"module": ""}).steps}


def test_a_fault_of_ours_is_not_taken_for_the_recipe_s(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.api import recipes

    def broken(source: str) -> cs.Plan:
        raise TypeError("ours")

    monkeypatch.setitem(recipes._VERBS, "filter", broken)  # type: ignore[misc]
    with pytest.raises(TypeError, match="ours"):
        cs.load_plan(recipe(verb="filter", source="a.pth"))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_recipe_without_output_leaves_nothing_open() -> None:
    name = recipe(**FILTER)
    before = open_files()
    with pytest.raises(cs.ConfigError, match="no output given") as caught:
        cs.apply(name)
    assert open_files() == before, caught


def test_a_recipe_without_output_names_no_folder_that_nobody_named(ckpt: Any) -> None:
    done = ckpt("apply", recipe(**FILTER, to="diffusers"))
    assert (done.code, "no output given" in done.err, "output/" in done.err) == (2, True, False)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"to": "fsdp", "ranks": 2, "axis": ["x=0"]}, "axis: x=0 in recipe.yaml matches none of the"),
        ({"max_shard_size": "1B"}, "max_shard_size: 1B in recipe.yaml makes"),
        ({"output": "o.npz", "to": "pth"}, "to: pth in recipe.yaml and the suffix of o.npz contradict each other. Change the name, or leave the field to of recipe.yaml out"),
    ],
)  # fmt: skip
def test_an_option_that_does_not_fit_the_tensors_is_named_as_its_field(
    fields: dict[str, Any], why: str, ckpt: Any
) -> None:
    done = ckpt("apply", recipe(**FILTER, **{"output": "out/", **fields}))
    assert (done.code, f"error: {why}" in " ".join(done.err.split())) == (2, True), done


def test_a_dry_run_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch, ckpt: Any) -> None:
    from ckptsurgeon.cli import writing

    kept: list[Any] = []
    show = writing.show_plan
    monkeypatch.setattr(
        writing, "show_plan", lambda printer, plan, *rest: (kept.append(plan), show(printer, plan, *rest))
    )
    name = recipe(**FILTER)
    before = open_files()
    assert ckpt("apply", name, "-n").code == 0
    assert (len(kept), open_files()) == (1, before)


@pytest.mark.parametrize(
    ("fields", "options", "why"),
    [
        ({"output": "o.pth", "to": "nonsense"}, [], "to: nonsense in recipe.yaml is unknown"),
        ({"to": "nonsense"}, [], "to: nonsense in recipe.yaml is unknown"),
        ({"output": "o.pth", "max_shard_size": "lots"}, [], "max_shard_size: lots in recipe.yaml is not a valid size"),
        ({"max_shard_size": "lots"}, [], "max_shard_size: lots in recipe.yaml is not a valid size"),
        ({"output": "o.xyz"}, [], "does not belong to a known format"),
        ({"output": "o.pth"}, ["--to", "nonsense"], "--to nonsense is unknown"),
        ({}, ["-o", "o.xyz"], "does not belong to a known format"),
        ({"output": "o.pth"}, ["-o", "-"], "is not a file name"),
        ({"output": "o.safetensors", "keep_extras": True}, [], "cannot store entries"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(fields: dict[str, Any], options: list[str], why: str, ckpt: Any) -> None:
    name = recipe(**FILTER, **fields)
    done = ckpt("apply", name, "-n", *options)
    assert (done.code, why in done.err) == (2, True), done
    if "output" in fields or "-o" in options:
        assert ckpt("apply", name, *options).code == 2


@pytest.mark.parametrize(
    ("fields", "options", "why"),
    [
        ({"to": "fsdp", "ranks": 2}, ["--to", "dcp"], "the field ranks of recipe.yaml needs --to fsdp or --to tp. Leave the field ranks of recipe.yaml out."),
        ({"to": "fsdp", "ranks": 2}, ["--max-shard-size", "2MB"], "to: fsdp in recipe.yaml writes one file for each rank. Use --ranks in place of --max-shard-size."),
        ({"to": "fsdp", "ranks": 2, "max_shard_size": "2MB"}, [], "to: fsdp in recipe.yaml writes one file for each rank. Use --ranks in place of the field max_shard_size of recipe.yaml."),
        ({"to": "fsdp", "ranks": -1}, [], "ranks: -1 in recipe.yaml is not a number from 1 to"),
        ({"to": "fsdp"}, [], "to: fsdp in recipe.yaml needs the number of ranks"),
        ({"to": "fsdp", "axis": ["x"]}, ["--ranks", "2"], "axis: x in recipe.yaml is not of the form GLOB=AXIS. Write a pattern and an axis, as in axis: '**.o_proj.weight=1' in recipe.yaml, or"),
        ({"mesh": "9"}, ["--to", "fsdp", "--ranks", "2"], "mesh: 9 in recipe.yaml is not a valid mesh."),
        ({"max_shard_size": "x"}, ["--to", "fsdp", "--ranks", "2"], "--to fsdp writes one file for each rank. Use --ranks in place of the field max_shard_size of recipe.yaml."),
        ({"to": "tp", "ranks": 2}, ["--mesh", "cpu:x"], "--mesh needs --to fsdp. Leave --mesh out."),
        ({"to": "magic"}, [], "to: magic in recipe.yaml is unknown"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dry", [["-n"], []])
def test_an_option_of_a_recipe_is_named_as_its_field(
    fields: dict[str, Any], options: list[str], why: str, dry: list[str], ckpt: Any
) -> None:
    done = ckpt("apply", recipe(**FILTER, **fields), "-o", "out/", *options, *dry)
    assert (done.code, f"error: {why}" in " ".join(done.err.split())) == (2, True), done


@pytest.mark.parametrize(
    ("fields", "options", "why"),
    [
        ({"to": "fsdp", "ranks": 2}, [], "to: fsdp in recipe.yaml"),
        ({"max_shard_size": "2MB"}, [], "max_shard_size: 2MB in recipe.yaml"),
        ({}, ["--to", "dcp"], "--to dcp"),
    ],
)
def test_a_folder_with_the_name_of_a_file_is_noted(
    fields: dict[str, Any], options: list[str], why: str, ckpt: Any
) -> None:
    name = recipe(**FILTER, **fields)
    note = f"note: q.pth has the name of a file, but is a folder, because of {why}"
    for dry in (["-n"], []):
        assert note in " ".join(ckpt("apply", name, *options, "-o", "q.pth", *dry).err.split())
    assert "has the name" not in ckpt("apply", name, *options, "-o", "q/").err
    Path("plan.json").write_text(ckpt("apply", name, *options, "-o", "r.pth", "-n", "--json").out)
    assert "has the name" not in ckpt("apply", "plan.json", "-o", "one.pth").err


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"verb": "convert", "layout": "magic"}, "layout: 'magic' is unknown. Use one of"),
        ({"verb": "convert", "heads": "2"}, "heads has no effect without layout. Leave it out, or add layout."),
        ({"verb": "filter", "exclude": ["x"]}, "exclude: x matches none of the"),
    ],
)
@pytest.mark.parametrize("dry", [["-n"], []])
def test_errors_of_a_verb_name_the_fields_of_the_recipe(
    fields: dict[str, Any], said: str, dry: list[str], ckpt: Any
) -> None:
    done = ckpt("apply", recipe(source="a.pth", **fields), "-o", "o.pth", *dry)
    assert (done.code, f"error: recipe.yaml: {said}" in " ".join(done.err.split())) == (2, True), done


def test_notes_of_a_verb_name_the_fields_of_the_recipe(ckpt: Any) -> None:
    for name in ("c", "d"):
        save_file({"w": torch.ones(2), "fc.weight": torch.arange(4)}, f"{name}.safetensors")
    Path("r.yaml").write_text(yaml.safe_dump({"verb": "average", "sources": ["c.safetensors", "d.safetensors"]}))
    said = "the values of the last checkpoint are taken ({}); if these are codes"
    assert said.format("int_buffers") in " ".join(ckpt("apply", "-n", "r.yaml").err.split())
    flags = ckpt("average", "c.safetensors", "d.safetensors", "-n").err
    assert said.format("--int-buffers") in " ".join(flags.split())


@pytest.mark.parametrize("dry", [["-n"], []])
def test_an_axis_of_a_recipe_that_fits_no_tensor_is_named_as_its_field(dry: list[str], ckpt: Any) -> None:
    done = ckpt("apply", recipe(**FILTER, to="tp", ranks=2, axis=["x=0"]), "-o", "out/", *dry)
    assert (done.code, "error: axis: x=0 in recipe.yaml matches none of the" in done.err) == (2, True), done


def test_a_dry_run_of_a_plan_checks_the_output_too(ckpt: Any) -> None:
    Path("plan.json").write_text(json.dumps(cs.filter("a.pth").to_json()))
    assert ckpt("apply", "plan.json", "-n", "-o", "o.pth").code == 0
    assert ckpt("apply", "plan.json", "-n", "-o", "o.xyz").code == 2


FORMS = (
    ["--to", "fsdp", "--ranks", "2", "--axis", "**.w=1", "--mesh", "cpu:tp"],
    ["--to", "dcp"],
    ["--max-shard-size", "2MB"],
)


@pytest.mark.costly
@pytest.mark.parametrize("form", FORMS, ids=" ".join)
def test_a_printed_plan_names_the_options_of_its_output_until_they_are_given_again(form: list[str], ckpt: Any) -> None:
    printed = ckpt("filter", "a.pth", *form, "-o", "out/", "-n", "--json").out
    Path("plan.json").write_text(printed)
    note = f"a plan does not contain the options of its output: give {shlex.join(form)} to ckpt apply again"
    assert json.loads(printed)["notes"].count(note) == 1
    assert note in " ".join(ckpt("apply", "plan.json", "-o", "plain/").err.split())
    assert note in json.loads(ckpt("apply", "plan.json", "-o", "other/", "--json").out)["notes"]
    for last in ((), ("-n",)):
        done = ckpt("apply", "plan.json", "-o", "again/", *form, *last)
        assert (done.code, "options of its output" in done.err) == (0, False)
    assert ckpt("apply", "plan.json", "-o", "again/", *form, "-n", "--json").out == printed
    assert "options of its output" not in ckpt("filter", "a.pth", *form, "-o", "out/", "-n").err
    assert ckpt("filter", "a.pth", *form, "-o", "out/").code == 0
    assert sorted(os.listdir("again")) == sorted(os.listdir("out"))


def test_a_printed_plan_names_the_options_of_its_run(ckpt: Any) -> None:
    private = Ed25519PrivateKey.generate()
    Path("k.pem").write_bytes(private.private_bytes(keys.Encoding.PEM, keys.PrivateFormat.PKCS8, keys.NoEncryption()))
    for options in (["--key", "k.pem"], ["--engine", "ray"], ["--consume"], ["--to", "dcp", "--key", "k.pem"]):
        Path("plan.json").write_text(ckpt("filter", "a.pth", *options, "-n", "--json").out)
        note = f"a plan does not contain the options of its output: give {shlex.join(options)} to ckpt apply again"
        assert note in json.loads(Path("plan.json").read_text())["notes"]
        assert note in " ".join(ckpt("apply", "plan.json", "-n").err.split())
    done = ckpt("apply", "plan.json", "-o", "out/", *options)
    assert (done.code, "options of its output" in done.err) == (0, False)


def test_a_printed_plan_with_further_options_has_no_note_on_those_that_were_printed(ckpt: Any) -> None:
    Path("plan.json").write_text(ckpt("filter", "a.pth", "--to", "dcp", "-o", "out/", "-n", "--json").out)
    more = ["--to", "dcp", "--max-shard-size", "2MB"]
    assert "options of its output" not in ckpt("apply", "plan.json", "-o", "out/", *more, "-n").err
    notes = json.loads(ckpt("apply", "plan.json", "-o", "out/", *more, "-n", "--json").out)["notes"]
    assert [note for note in notes if "options of its output" in note] == [
        "a plan does not contain the options of its output: give --to dcp --max-shard-size 2MB to ckpt apply again"
    ]
    done = ckpt("apply", "plan.json", "-o", "out/", *more)
    assert (done.code, "options of its output" in done.err) == (0, False)


def test_what_is_no_recipe_is_said(ckpt: Any) -> None:
    Path("list.yaml").write_text("- 1\n")
    assert "is not a valid recipe" in ckpt("apply", "list.yaml", "-o", "o.pth").err
    done = ckpt("apply", "missing.yaml", "-o", "o.pth")
    assert (done.code, "cannot be read" in done.err) == (3, True)


def test_a_recipe_is_an_input_and_never_written(ckpt: Any) -> None:
    name = recipe(verb="filter", source="a.pth", output="recipe.yaml", to="pth")
    done = ckpt("apply", name, "--force")
    assert (done.code, "is an input" in done.err) == (5, True)


def test_notes_of_a_recipe_are_notes_of_its_plan_and_safe_for_a_terminal() -> None:
    path = recipe(verb="rename", source="a.pth", map=["module=m"], notes=["two are missing", "\x1b[31mred"])
    plan = cs.load_plan(path)
    assert plan.notes[:2] == ("two are missing", "\\x1b[31mred")


@pytest.mark.parametrize("notes", ["text", ["a", 1], {"a": "b"}, ["a"] * 17, ["a" * 1001]])
def test_notes_of_a_recipe_are_a_few_short_strings(notes: object) -> None:
    path = recipe(verb="rename", source="a.pth", map=["module=m"], notes=notes)
    with pytest.raises(cs.ConfigError, match="not a list of at most 16 strings of at most 1000 characters"):
        cs.load_plan(path)


@pytest.mark.parametrize("field", ["statistics", "tokens"])
def test_a_model_with_two_files_is_an_error(field: str, ckpt: Any) -> None:
    document = {"verb": "merge", "models": ["a", "./a", "b"], field: {"a": "s", "./a": "t", "b": "u"}}
    with pytest.raises(cs.ConfigError, match=f"^{field} of a recipe names one model twice: a, ./a"):
        with_absolute_paths(document, "r.yaml")
    Path("r.yaml").write_text(yaml.safe_dump({**document, "method": "regmean"}))
    assert "names one model twice: ./a, a." in ckpt("apply", "r.yaml", "-o", "out/").err  # in the working directory
    assert with_absolute_paths({**document, field: {"./a": "t", "b": "u"}}, "/r.yaml")[field] == {
        "/a": "/t",
        "/b": "/u",
    }
