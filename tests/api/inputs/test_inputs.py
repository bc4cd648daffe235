"""A path, an open checkpoint, a dict of tensors and a module are alike wherever a checkpoint is an input."""

from __future__ import annotations

import gc
import inspect
import json
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ckptsurgeon as cs
from ckptsurgeon.engine.inputs import PlanInputs
from ckptsurgeon.planning.recipe import parse_recipe

from ...helpers.adapters import base_state, factors

State = dict[str, torch.Tensor]


class Net(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
        self.decoder = nn.Linear(4, 3)


@pytest.fixture(scope="module", autouse=True)
def _others_are_not_looked_at() -> Iterator[None]:
    """Leave what is there before these tests out of garbage collection: each one looked at millions of objects.

    Afterwards, what has become garbage goes, and the rest is left out as it was when the tests were collected.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture
def net() -> Net:
    torch.save({"state_dict": Net(0).state_dict(), "epoch": 3}, "a.pth")
    save_file(Net(1).state_dict(), "b.safetensors")
    return Net(0)


WAYS: dict[str, Callable[[Net], Any]] = {
    "path": lambda net: "a.pth",
    "Path": lambda net: Path("a.pth"),
    "dict": lambda net: net.state_dict(),
    "nested dict": lambda net: {"state_dict": net.state_dict(), "epoch": 3},
    "arrays": lambda net: {key: value.numpy() for key, value in net.state_dict().items()},
    "module": lambda net: net,
    "checkpoint": lambda net: cs.open_checkpoint("a.pth"),
    "checkpoint of a dict": lambda net: cs.open_checkpoint(net.state_dict()),
}
PLANS: dict[str, Callable[[Any], cs.Plan]] = {
    "rename": lambda given: cs.rename(given, map=["encoder=body"]),
    "filter": lambda given: cs.filter(given, exclude=["decoder"]),
    "convert": lambda given: cs.convert(given, dtype="float16"),
    "average": lambda given: cs.average([given, "b.safetensors"]),
    "merge": lambda given: cs.merge([given, "b.safetensors"], method="linear", weights=[0.3, 0.7]),
    "merge of one": lambda given: cs.merge([given], method="task_arithmetic", base="b.safetensors", weights=[0.5]),
    "merge onto": lambda given: cs.merge(["b.safetensors"], method="task_arithmetic", base=given, weights=[0.5]),
    "lora extract": lambda given: cs.lora_extract("b.safetensors", given, rank=1),
    "lora extract from": lambda given: cs.lora_extract(given, "b.safetensors", rank=1),
    "transplant from": lambda given: cs.transplant(given, "b.safetensors", exclude=["decoder"]),
    "transplant of several": lambda given: cs.transplant(["b.safetensors", given], "a.pth", include=["encoder"]),
    "transplant into": lambda given: cs.transplant("b.safetensors", given, exclude=["decoder"]),
    "transplant with padding": lambda given: cs.transplant(
        "b.safetensors", given, map=["encoder.0.bias=encoder.1.bias"], on_mismatch="overlap", exclude=["encoder.1.bias"]
    ),
}
SAID: dict[str, Callable[[Any], Any]] = {
    "inspect": lambda given: cs.inspect(given, stats=True).tensors.keys(),
    "stats": lambda given: cs.inspect(given, stats=True).stats,
    "diff": lambda given: {**cs.diff(given, "b.safetensors", values=True).to_json(), "first": "", "notes": []},
    "diff with": lambda given: {**cs.diff("b.safetensors", given, renames=True).to_json(), "second": "", "notes": []},
    "compare_changes": lambda given: cs.compare_changes(given, ["b.safetensors", given]).to_json()["total"],
    "fits": lambda given: cs.fits(given, "b.safetensors").to_json()["missing"],
    "fits with": lambda given: cs.fits("b.safetensors", given).to_json()["missing"],
    "match": lambda given: {**cs.match(given, "b.safetensors").to_json(), "first": "", "notes": []},
    "match with": lambda given: {**cs.match("b.safetensors", given).to_json(), "second": "", "notes": []},
    "layouts": lambda given: cs.layouts(given).found,
    "init_config": lambda given: cs.init_config(given),
    "load_target": lambda given: cs.load_target(given).tensors,
    "view": lambda given: cs.view(given, "b.safetensors").tensors,
    "view stats": lambda given: cs.view(given, stats=True).tensors,
    "explain": lambda given: [
        {**one, "from": None} for one in cs.explain(cs.transplant(given, "b.safetensors"), "**").to_json()["tensors"]
    ],
    "load_into": lambda given: [value.tolist() for value in loaded(given).state_dict().values()],
}


def loaded(given: Any) -> Net:
    net = Net(7)
    cs.load_into(net, given, exclude=["decoder"])
    return net


def written(plan: cs.Plan, output: str) -> dict[str, Any]:
    """The tensors of a plan's output, as they are in it."""
    cs.apply(plan, output)
    with cs.open_checkpoint(output) as checkpoint:
        return {key: checkpoint.tensor(key).tolist() for key in checkpoint}


@pytest.mark.costly
@pytest.mark.parametrize("verb", PLANS)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_written_is_the_same_whatever_stands_for_the_checkpoint(way: str, verb: str, net: Net) -> None:
    given = WAYS[way](net)
    found, wanted = PLANS[verb](given), PLANS[verb]("a.pth")
    assert found.counts == wanted.counts
    assert written(found, "found/" if verb.startswith("lora") else "found.pth") == written(
        wanted, "wanted/" if verb.startswith("lora") else "wanted.pth"
    )


@pytest.mark.parametrize("verb", SAID)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_said_is_the_same_whatever_stands_for_the_checkpoint(way: str, verb: str, net: Net) -> None:
    assert SAID[verb](WAYS[way](net)) == SAID[verb]("a.pth")


@pytest.mark.costly
@pytest.mark.each_value
@pytest.mark.parametrize("verb", [*PLANS, *SAID])
@pytest.mark.parametrize("of", ["a file", "a dict"])
def test_an_open_checkpoint_stays_its_owner_s(of: str, verb: str, net: Net) -> None:
    with cs.open_checkpoint("a.pth" if of == "a file" else net.state_dict()) as checkpoint:
        result = {**PLANS, **SAID}[verb](checkpoint)
        if isinstance(result, cs.Plan):
            cs.apply(result, "out/" if verb.startswith("lora") else "out.pth")
            del result
            gc.collect()
        assert not checkpoint.closed
        assert checkpoint.tensor("decoder.bias").tolist() == net.decoder.bias.tolist()
    assert checkpoint.closed


@pytest.mark.parametrize("verb", [*PLANS, *SAID])
@pytest.mark.parametrize("of", ["a file", "a dict"])
def test_a_closed_checkpoint_is_an_error(of: str, verb: str, net: Net) -> None:
    checkpoint = cs.open_checkpoint("a.pth" if of == "a file" else net.state_dict())
    checkpoint.close()
    with pytest.raises(cs.SourceError, match=r"(a\.pth|<dict>) is closed\. Open the checkpoint again"):
        {**PLANS, **SAID}[verb](checkpoint)


def test_every_verb_that_plans_takes_all_ways() -> None:
    """A verb that is added is to be added above."""
    verbs = {name for name in cs.__all__ if inspect.isfunction(getattr(cs, name))}
    others = {
        "apply",
        "apply_in_place",  # of a plan: tests/api/in_place
        "apply_patch",
        "average_windows",  # by paths, after which the outputs are named
        "check",  # of files, whose sizes and indexes it looks at
        "fetch",
        "greedy_soup",  # of paths, which a command gets: tests/api/search
        "load_plan",
        "loss_barrier",  # of networks: tests/api/prove
        "lora_concat",  # of adapters: tests/api/lora
        "lora_convert",
        "lora_merge",
        "lora_resize",
        "make_patch",  # of files, byte for byte
        "merge_method",
        "open_checkpoint",
        "prove",  # of networks, which need a configuration: tests/api/prove
        "read_patch",
        "resize",  # of the folder of a model: tests/api/resize
        "scan",
        "search",  # of a recipe
        "stats",  # of a network
        "train",
        "transcribe",
        "verify",
    }
    tried = {name.replace("lora ", "lora_").split()[0] for name in (*PLANS, *SAID)}
    assert verbs - others <= tried


def test_an_open_checkpoint_keeps_its_root(net: Net) -> None:
    torch.save({"model": {"w": torch.ones(2)}, "ema": {"w": torch.zeros(2)}}, "two.pth")
    with cs.open_checkpoint("two.pth", root="ema") as ema:
        assert written(cs.filter(ema), "ema.pth") == {"w": [0.0, 0.0]}
        assert written(cs.filter(ema, root="model"), "model.pth") == {"w": [1.0, 1.0]}


def test_an_open_checkpoint_stands_for_its_file_wrappers_and_all() -> None:
    torch.save({"module.w": torch.ones(2)}, "wrapped.pth")
    with cs.open_checkpoint("wrapped.pth") as checkpoint:
        assert list(checkpoint) == ["w"]
        assert [step.key for step in cs.convert(checkpoint).steps] == ["module.w"]
        assert [step.key for step in cs.convert(checkpoint, unwrap=True).steps] == ["w"]


def test_a_plan_outlives_the_checkpoint_that_it_was_made_from(net: Net) -> None:
    with cs.open_checkpoint("a.pth") as checkpoint:
        plan = cs.filter(checkpoint)
    assert cs.apply(plan, "out.pth").counts == {"copied": 6}
    with cs.open_checkpoint(net.state_dict()) as checkpoint:
        plan = cs.filter(checkpoint)
    with pytest.raises(cs.PlanError, match=r"made from tensors in memory \(<dict>\)"):
        cs.apply(plan, "memory.pth")


def test_an_adapter_may_be_in_memory_or_open() -> None:
    base, (a, b) = base_state(), factors(8, 8)
    style = {"unet.layers.0.q.lora_A.weight": a, "unet.layers.0.q.lora_B.weight": b}
    save_file(base, "base.safetensors")
    save_file(style, "style.safetensors")
    wanted = written(cs.lora_merge("base.safetensors", "style.safetensors"), "wanted.pth")
    kohya = {
        "lora_unet_layers_0_q.lora_down.weight": a.numpy(), "lora_unet_layers_0_q.lora_up.weight": b.numpy(),
        "lora_unet_layers_0_q.alpha": np.array(2.0, "f4"),
    }  # fmt: skip
    with cs.open_checkpoint("style.safetensors") as opened:
        ways: list[Any] = [style, [style], opened, {"state_dict": style}, kohya]
        for number, given in enumerate(ways):
            assert written(cs.lora_merge(base, given), f"{number}.pth") == wanted
        assert not opened.closed


def test_an_open_adapter_of_peft_has_the_configuration_beside_it(net: Net) -> None:
    cs.apply(cs.lora_extract("b.safetensors", "a.pth", rank=2, alpha=8), "adapter/")
    wanted = written(cs.lora_merge("a.pth", "adapter"), "wanted.pth")
    with cs.open_checkpoint("adapter/adapter_model.safetensors") as opened:
        assert written(cs.lora_merge(net, opened), "found.pth") == wanted


def test_one_model_in_memory_is_a_model_and_no_recipe(net: Net) -> None:
    plan = cs.merge(net.state_dict(), method="task_arithmetic", base="b.safetensors", weights=[0.5])
    assert [source.name for source in plan.sources] == ["<dict>", "b.safetensors"]


def test_what_lies_in_the_working_directory_is_not_beside_what_is_in_memory(net: Net) -> None:
    said = {"model_type": "gpt2", "tie_word_embeddings": True, "num_hidden_layers": 1}
    Path("config.json").write_text(json.dumps(said))
    Path("tokens.txt").write_text("a\nb\nc\n")
    state = net.state_dict()
    assert cs.merge([state, state], method="linear", weights=[1, 1]).target.companions == ()
    assert cs.lora_extract(state, "b.safetensors", rank=1).steps
    with pytest.raises(cs.ConfigError, match=r"<dict> is in memory, so it has no token list"):
        cs.merge([state, state], method="linear", weights=[1, 1], vocab="union")


def test_the_token_lists_of_models_in_memory_are_named() -> None:
    Path("one.txt").write_text("a\nb\n")
    Path("other.txt").write_text("b\nc\n")
    first, second = {"embed.w": torch.tensor([[1.0], [2.0]])}, {"embed.w": torch.tensor([[4.0], [8.0]])}
    plan = cs.merge(
        [first, second], method="linear", weights=[0.5, 0.5], vocab="union", vocab_keys="embed.w=0",
        tokens={"<dict>": "one.txt", "<dict> (2)": "other.txt"},
    )  # fmt: skip
    assert written(plan, "out.pth") == {"embed.w": [[1.0], [3.0], [8.0]]}


# What a plan and a recipe say.


def test_a_recipe_says_that_its_source_was_memory(net: Net) -> None:
    cs.apply(cs.transplant([net, net.state_dict()], "b.safetensors"), "out.safetensors")
    text = cs.open_checkpoint("out.safetensors").recipe
    assert text is not None
    recipe = parse_recipe(text)
    assert [(one.name, one.role, one.path, one.memory) for one in recipe.sources] == [
        ("<Net>", "source", "", True),
        ("<dict>", "source", "", True),
        ("b.safetensors", "destination", "b.safetensors", False),
    ]
    assert recipe.sources[0].files == recipe.sources[1].files
    assert len(recipe.sources[0].files[0].sha256) == 64
    rows = json.loads(text)["sources"]
    assert [row.get("memory") for row in rows] == [True, True, None]


def test_the_same_tensors_give_the_same_plan(net: Net) -> None:
    other = {key: value.clone() for key, value in reversed(net.state_dict().items())}
    plans = [cs.convert(one) for one in (net.state_dict(), other)]
    assert plans[0].sources == plans[1].sources
    assert cs.convert(net.state_dict()).sha256() == plans[0].sha256()
    assert cs.convert({**other, "more": torch.ones(1)}).sources != plans[0].sources


def test_a_plan_of_tensors_in_memory_is_written_and_read_and_cannot_be_applied(net: Net, ckpt: Any) -> None:
    for plan in (cs.filter(net.state_dict()), cs.transplant("b.safetensors", net.state_dict(), exclude=["decoder"])):
        Path("plan.json").write_text(json.dumps(plan.to_json()))
        read = cs.load_plan("plan.json")
        assert (read.sources, read.steps) == (plan.sources, plan.steps)
        for opened in (read, "plan.json"):
            with pytest.raises(cs.PlanError, match=r"the plan was made from tensors in memory \(<dict>\)") as caught:
                cs.apply(opened, "out.pth")
            assert caught.value.exit_code == 4
        assert ckpt("apply", "plan.json", "-o", "out.pth").code == 4
        assert cs.apply(plan, "out.pth", force=True).counts == plan.counts


def test_a_plan_is_applied_as_often_as_wanted_and_then_lets_go(net: Net) -> None:
    state = {"w": torch.ones(1000)}
    plan = cs.filter(state)
    assert written(plan, "one.pth") == written(plan, "two.pth")
    watched = weakref.ref(state["w"].untyped_storage())
    del plan, state
    gc.collect()
    assert watched() is None


def test_a_plan_that_was_loaded_holds_nothing(net: Net) -> None:
    assert cs.load_into(Net(3), net.state_dict()).inputs is None


def test_verify_says_what_was_in_memory_and_compares_it_where_it_is_given(net: Net, ckpt: Any) -> None:
    state = net.state_dict()
    cs.apply(cs.convert(state, dtype="float16"), "out.safetensors")
    found = cs.verify("out.safetensors")
    assert (found.ok, found.compared, len(found.not_compared or {})) == (True, 0, 6)
    assert next(iter((found.not_compared or {}).values())).startswith("<dict> was in memory")
    assert cs.verify("out.safetensors", sources={"<dict>": state}).compared == 6
    assert cs.verify("out.safetensors", sources={"<dict>": net}).compared == 6
    with cs.open_checkpoint(state) as opened:
        assert cs.verify("out.safetensors", sources={"<dict>": opened}).compared == 6
        assert not opened.closed
    save_file({key: value.contiguous() for key, value in state.items()}, "same.safetensors")
    assert cs.verify("out.safetensors", sources={"<dict>": "same.safetensors"}).compared == 6
    done = ckpt("verify", "out.safetensors", "--source", "<dict>=same.safetensors")
    assert done.code == 0, done
    assert "NOT COMPARED" in ckpt("verify", "out.safetensors").out


def test_an_open_output_is_verified_and_stays_open(net: Net) -> None:
    cs.apply(cs.filter("a.pth"), "out.safetensors")
    with cs.open_checkpoint("out.safetensors") as opened:
        assert cs.verify(opened).compared == 6
        assert not opened.closed


def test_verify_finds_what_has_changed_in_memory(net: Net) -> None:
    state = {key: value.clone() for key, value in net.state_dict().items()}
    cs.apply(cs.filter(state), "out.safetensors")
    state["decoder.bias"][1] += 1
    found = cs.verify("out.safetensors", sources={"<dict>": state})
    assert [failure.key for failure in found.failed] == ["decoder.bias"]
    less = cs.verify("out.safetensors", sources={"<dict>": {"w": torch.ones(1)}})
    assert "<dict> is a different file now: its tensors have 4 bytes now, not " in "".join(
        (less.not_compared or {}).values()
    )
    state["decoder.other"] = state.pop("decoder.bias")
    other = cs.verify("out.safetensors", sources={"<dict>": state})
    said = "<dict> is a different file now: its tensors have the recorded number of bytes, but their keys, dtypes or shapes have changed"
    assert said in (other.not_compared or {}).values()


def test_tensors_in_memory_are_held_against_a_plan(net: Net) -> None:
    plan = cs.filter("a.pth", exclude=["decoder"])
    state = {key: value for key, value in net.state_dict().items() if not key.startswith("decoder")}
    assert cs.verify(state, plan=plan).compared == 4
    state["encoder.0.bias"] = state["encoder.0.bias"] + 1
    assert [failure.key for failure in cs.verify(state, plan=plan).failed] == ["encoder.0.bias"]
    with pytest.raises(cs.ConfigError, match="<dict> has no recipe"):
        cs.verify(state)


def test_load_into_takes_what_shares_memory_with_the_module() -> None:
    net = Net(2)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    swapped = {**net.state_dict(), "encoder.0.weight": net.encoder[0].weight.detach().flip(0)}
    cs.load_into(net, swapped)
    assert torch.equal(net.encoder[0].weight, before["encoder.0.weight"].flip(0))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items() if key != "encoder.0.weight")


def test_load_into_of_a_dict_changes_nothing_where_it_fails() -> None:
    net = Net(2)
    before = [value.clone() for value in net.state_dict().values()]
    with pytest.raises(cs.PlanError):
        cs.load_into(net, {"encoder.0.weight": torch.ones(1, 1)})
    assert all(torch.equal(*pair) for pair in zip(net.state_dict().values(), before, strict=True))


@pytest.mark.parametrize("wrong", [None, 3, [None], [[]], torch.ones(2)])
def test_what_load_into_cannot_take_is_said(wrong: Any) -> None:
    with pytest.raises(cs.ConfigError, match=r"not a path, a checkpoint or a dict of tensors"):
        cs.load_into(Net(0), wrong)
    with pytest.raises(cs.ConfigError, match=r"not a path, a checkpoint or a dict of tensors, or a plan"):
        cs.view(wrong)


def test_what_has_to_be_a_file_says_so() -> None:
    state: Any = Net(0).state_dict()
    with pytest.raises(cs.ConfigError, match=r"init is .*, not a path\. .* write the tensors to a file first"):
        cs.train("train.yaml", init=state)
    with pytest.raises(cs.ConfigError, match=r"config is .*, not a path\. Write the configuration to a YAML file"):
        cs.train({"train": {}})  # type: ignore[arg-type]
    with pytest.raises(cs.ConfigError, match="is not a path"):
        cs.Pretrainer("collected", {"net": Net(0)}, {"net": state}).collect_files()


ABOUT_FILES: dict[str, Callable[[Any], object]] = {
    "scan": cs.scan,
    "fetch": cs.fetch,
    "make_patch": lambda given: cs.make_patch("a.pth", given, "a.patch"),
    "apply_patch": lambda given: cs.apply_patch(given, "a.patch", "b.pth"),
}


@pytest.mark.parametrize("verb", ABOUT_FILES)
def test_functions_about_files_take_paths_alone_and_say_why(verb: str) -> None:
    torch.save({"w": torch.ones(1)}, "a.pth")
    with pytest.raises(cs.ConfigError, match="not a path") as error:
        ABOUT_FILES[verb]({"w": torch.ones(1)})
    assert "about files, not tensors: write the tensors to a file first" in str(error.value.hint)
    with cs.open_checkpoint("a.pth") as opened, pytest.raises(cs.ConfigError, match="not a path") as error:
        ABOUT_FILES[verb](opened)
    assert "give the path of the checkpoint" in str(error.value.hint)
    with pytest.raises(cs.ConfigError, match="not a path"):
        ABOUT_FILES[verb](3)


@pytest.mark.parametrize("verb", [partial(cs.resize, set={"num_hidden_layers": 1}), cs.stats], ids=["resize", "stats"])
def test_functions_that_need_a_configuration_say_so(verb: Callable[[Any], object]) -> None:
    with pytest.raises(cs.ConfigError, match="in a folder that has the config.json of the model, cs.apply"):
        verb({"w": torch.ones(1)})
    model = nn.Linear(1, 1)
    model.save_pretrained = print  # type: ignore[assignment]
    with pytest.raises(cs.ConfigError, match="write the model to a folder first, save_pretrained"):
        verb(model)


def test_arguments_of_other_types_are_named() -> None:
    with pytest.raises(cs.ConfigError, match="^load_into: the argument source is b'x', not a path"):
        cs.load_into(nn.Linear(1, 1), b"x")  # type: ignore[arg-type]
    plan = cs.convert({"w": torch.ones(1)})
    with pytest.raises(cs.ConfigError, match="apply: the argument progress is 3, not a function"):
        cs.apply(plan, "a.safetensors", progress=3)  # type: ignore[arg-type]


GOOD = {"a": torch.ones(2)}
SEVERAL: Any = {"m": {"a": torch.ones(2), "b": torch.ones(2)}, "n": {"a": torch.ones(2), "b": torch.ones(2)}}
PLACES: dict[str, tuple[str, Callable[[], object]]] = {
    "average": ("source 2", lambda: cs.average([GOOD, SEVERAL])),
    "merge": ("model 2", lambda: cs.merge([GOOD, SEVERAL], method="linear", weights=[1, 1])),
    "merge base": ("base", lambda: cs.merge([GOOD, GOOD], method="task_arithmetic", base=SEVERAL)),
    "lora merge": ("base", lambda: cs.lora_merge(SEVERAL, GOOD)),
    "adapter": ("adapter", lambda: cs.lora_merge(GOOD, SEVERAL)),
    "extract": ("tuned", lambda: cs.lora_extract(SEVERAL, GOOD, rank=1)),
    "extract base": ("base", lambda: cs.lora_extract(GOOD, SEVERAL, rank=1)),
    "destination": ("destination", lambda: cs.transplant(GOOD, SEVERAL)),
    "source": ("source", lambda: cs.transplant(SEVERAL, GOOD)),
    "sources": ("source 2", lambda: cs.transplant([GOOD, SEVERAL], GOOD)),
    "diff": ("second", lambda: cs.diff(GOOD, SEVERAL)),
}


@pytest.mark.parametrize("name", PLACES)
def test_an_error_says_which_of_several_dicts_it_is_of(name: str) -> None:
    place, call = PLACES[name]
    with pytest.raises(cs.ConfigError) as error:
        call()
    assert error.value.message.startswith(f"{place}, a dict, has several state dicts: m (2 tensors)")


@pytest.mark.costly
@pytest.mark.parametrize("verb", PLANS)
def test_the_inputs_of_a_plan_stay_open_until_it_is_applied(verb: str, net: Net) -> None:
    plan = PLANS[verb]("a.pth")
    gc.collect()
    inputs = plan.inputs
    assert isinstance(inputs, PlanInputs)
    assert not [source.path for source in inputs.sources if source.closed]


@pytest.mark.costly
@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"w": torch.ones(4, 2)}, r"it was written again later, with the same size and header"),
        ({"v": torch.ones(4, 2)}, r"its header is different"),
        ({"w": torch.ones(5, 2)}, r"it has \d+ bytes now, not \d+"),
        ({}, "b.safetensors"),
    ],
)
def test_an_input_that_has_changed_says_in_what(state: dict[str, torch.Tensor], why: str) -> None:
    save_file({"w": torch.zeros(4, 2)}, "b.safetensors")
    plan = cs.filter("b.safetensors").to_json()
    Path("p.json").write_text(json.dumps(plan))
    Path("b.safetensors").unlink()
    if state:
        save_file(state, "b.safetensors")
    with pytest.raises(cs.CheckpointError, match=why):
        cs.apply("p.json", "out.safetensors")


@pytest.mark.long
def test_a_source_that_is_at_its_path_but_cannot_be_read_is_not_called_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": torch.ones(2)}, "s.pth")
    cs.apply(cs.convert("s.pth"), "o.safetensors")

    def refused(source: Any, given: Any = None) -> Any:
        raise cs.SourceError("s.pth cannot be read: Permission denied.")

    monkeypatch.setattr("ckptsurgeon.api.inputs.reopening.reopen", refused)
    assert cs.verify("o.safetensors").not_compared == {"w": "s.pth: s.pth cannot be read: Permission denied"}
