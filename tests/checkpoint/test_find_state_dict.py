"""Where the state dict hangs, and what else is there."""

from __future__ import annotations

import argparse
import collections
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ckptsurgeon as cs
from ckptsurgeon.checkpoint.opening import open_optimizer
from ckptsurgeon.formats.base import limits

T = torch.ones(2)


def opened(value: Any, root: str | None = None) -> cs.Checkpoint:
    torch.save(value, "x.pth")
    return cs.open_checkpoint("x.pth", root)


def test_a_bare_state_dict_is_the_top_level() -> None:
    found = opened({"a": T, "b.c": T})
    assert (found.root, list(found)) == ("", ["a", "b.c"])


def test_plain_values_among_tensors_are_extras() -> None:
    found = opened({"a": T, "epoch": 3})
    assert list(found) == ["a"]
    assert [(e.key, e.type, e.value) for e in found.extras] == [("epoch", "int", 3)]


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model", "module", "net"])
def test_a_named_entry_is_taken(name: str) -> None:
    found = opened({"epoch": 1, name: {"a": T}, "zzz": {"b": T, "c": T}})
    assert (found.root, list(found)) == (name, ["a"])
    assert found.passed == ("zzz",)
    assert any("zzz" in note for note in found.notes)


def test_the_names_have_an_order() -> None:
    assert opened({"model": {"a": T}, "state_dict": {"b": T}}).root == "state_dict"


def test_one_entry_of_any_name_is_taken() -> None:
    assert opened({"weights": {"a": T}, "epoch": 1}).root == "weights"


def test_several_entries_of_other_names_ask_which() -> None:
    with pytest.raises(cs.ConfigError, match="several state dicts: generator .*, critic") as caught:
        opened({"generator": {"a": T}, "critic": {"b": T}})
    assert caught.value.exit_code == 2
    assert 'root="generator"' in str(caught.value)
    assert list(opened({"generator": {"a": T}, "critic": {"b": T}}, "critic")) == ["b"]


def test_a_stray_tensor_beside_the_model_does_not_make_the_top_level_the_state_dict() -> None:
    found = opened({"model": {"a": T, "b": T}, "rng_state": torch.ones(5, dtype=torch.uint8)})
    assert found.root == "model"
    assert found.passed == ("",)


def test_a_scalar_at_the_top_is_not_the_model() -> None:
    step = torch.tensor(7)
    found = opened({"step": step, "params": {"a": T}})
    assert (found.root, list(found), found.passed) == ("params", ["a"], ("",))
    assert opened({"step": step, "params": {"a": T}}, ".").tensor("step").tolist() == 7
    assert opened({"step": step, "a": T, "b": {"c": T}}).root == ""
    assert opened({"step": step, "counts": {"a": step}}).root == ""
    with pytest.raises(cs.ConfigError, match="several state dicts: generator .*, critic"):
        opened({"step": step, "generator": {"a": T}, "critic": {"b": T}})


def test_optimizer_state_is_never_the_state_dict() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    named = {"state": {"w": {"exp_avg": T, "step": T}}, "param_groups": []}
    for state in (optimizer.state_dict(), named):
        found = opened({"weights": model.state_dict(), "optim": state, "anything": state})
        assert found.root == "weights"
        assert found.passed == ()
    with pytest.raises(cs.FormatError, match="no state dict"):
        opened({"optimizer": optimizer.state_dict()})


@pytest.mark.parametrize("name", ["optimus", "optimized", "optimal_model", "Optimism"])
def test_a_model_whose_name_begins_like_optimizer_is_no_optimizer(name: str) -> None:
    assert opened({name: {"a": T}}).root == name


@pytest.mark.parametrize(
    "name",
    ["optim", "optimizer", "Optimizers", "optim_states", "optimizer_state_dict", "optimizerG", "optimizer_0", "optims"],
)
def test_what_is_called_an_optimizer_is_one(name: str) -> None:
    assert opened({name: {"a": T}, "weights": {"b": T}}).passed == ()


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (T, r"it is one tensor, float32 \(2\)"),
        ({"state": {0: {"exp_avg": T}}, "param_groups": []}, "it is an optimizer's state"),
        ({0: T, 1: T}, "its keys are not strings but of the type int"),
        ({"a": T, 1: T}, "some of its keys are not strings but of the type int"),
        ({}, "it is an empty dict"),
        ([], "it is empty"),
        (3, "it is a int"),
        ({"epoch": 1, "loss": 2.0}, "it is a dict with the keys epoch, loss"),
        (argparse.Namespace(a=1), "it is a argparse.Namespace, which ckpt neither imports nor runs"),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(value: Any, why: str) -> None:
    with pytest.raises(cs.FormatError, match=f"x.pth has no state dict: {why}"):
        opened(value)


def test_as_many_tensors_at_the_top_as_in_a_named_entry_make_the_top_the_state_dict() -> None:
    assert opened({"a": T, "model": {"b": T}}).root == ""
    assert opened({"a": T, "model": {"b": T, "c": T}}).root == "model"


def test_the_top_level_is_called_so() -> None:
    with pytest.raises(
        cs.ConfigError,
        match=r"root=.foo. has no tensors in x.pth. Choose one of its state dicts: the top level \(root=.\..\)\.$",
    ):
        opened({"a": T}, "foo")


def test_keys_of_the_longest_kind_are_read_and_longer_ones_refused() -> None:
    for key in ("a" * 8192, ".".join("a" * 256)):
        assert list(opened({key: T, "b": T})) == [key, "b"]
    for key in ("a" * 8193, ".".join("a" * 257)):
        with pytest.raises(cs.FormatError, match="the limits are 8192 characters and 256 segments"):
            opened({key: T, "b": T})


def test_more_tensors_than_any_model_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TENSORS", 2)
    assert len(opened({"a": T, "b": T})) == 2
    with pytest.raises(cs.FormatError, match="x.pth has 3 tensors, more than the limit of 2"):
        opened({"a": T, "b": T, "c": T})


def test_more_extras_than_anybody_reads_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EXTRAS", 2)
    monkeypatch.setattr(limits, "COUNTED", 3)
    found = opened({"w": T, "a": [1, 2, 3, 4], "b": 2, "c": 3, "d": 4})
    assert [(extra.key, extra.type) for extra in found.extras] == [
        ("a", "list of 4, not searched"), ("b", "int"), ("…", "2 more entries, not listed"),
    ]  # fmt: skip


def test_a_root_may_hang_deep_and_its_keys_may_hold_dots() -> None:
    value = {"a.b": {"c": [{"w": T}, {"v": T}]}, "other": {"x": T}}
    assert list(opened(value, "a.b.c.1")) == ["v"]
    assert list(opened(value, "other")) == ["x"]
    with pytest.raises(cs.ConfigError, match=r"root=.nothing. has no tensors"):
        opened(value, "nothing")


def test_a_root_with_which_keys_begin_has_a_hint_that_selects_them() -> None:
    flat = {"model_ema.diffusion_modelout0weight": T, "model_ema.diffusion_modelout0bias": T}
    value = {"state_dict": {"ema.w": T, "model.diffusion_model.out.0.weight": T, **flat}}
    with pytest.raises(cs.ConfigError) as error:
        opened(value, "ema")
    assert error.value.hint == "1 key in state_dict begins with ema.: ckpt filter --include ema selects them."
    with pytest.raises(cs.ConfigError, match=r"2 keys in state_dict begin with model_ema\.: .* --layout diffusers-ema"):
        opened(value, "model_ema")
    notes = [cs.filter("x.pth", include=one).notes for one in ("model_ema.**", "model*.**")]
    assert ["2 averages of weights without the dots" in "".join(one) for one in notes] == [True, False]


def test_the_top_level_can_be_asked_for() -> None:
    assert list(opened({"model": {"a": T, "b": T}, "ema": T}, ".")) == ["ema"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.register_buffer("mask", torch.ones(1), persistent=False)
        self.register_parameter("nothing", None)
        self.scale = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_module_that_was_pickled_whole_is_read_without_its_class(legacy: bool) -> None:
    net = Net()
    torch.save({"model": net, "epoch": 1}, "x.pth", _use_new_zipfile_serialization=not legacy)
    found = cs.open_checkpoint("x.pth")
    assert list(found) == list(net.state_dict())
    assert all(torch.equal(found.tensor(key), value) for key, value in net.state_dict().items())
    torch.save(net, "y.pth")
    assert set(cs.open_checkpoint("y.pth")) == set(net.state_dict())


@pytest.mark.parametrize(
    ("keys", "shown", "stripped"),
    [
        (["module.a", "module.b"], ["a", "b"], ("module",)),
        (["_orig_mod.module.a", "_orig_mod.module.b"], ["a", "b"], ("_orig_mod", "module")),
        (["module.module.a"], ["a"], ("module", "module")),
        (["module.a", "b"], ["module.a", "b"], ()),
        (["module", "module.a"], ["module", "module.a"], ()),
        (["x._orig_mod.a", "x.b"], ["x.a", "x.b"], ("**._orig_mod",)),
        (["x._orig_mod.a", "x.a"], ["x._orig_mod.a", "x.a"], ()),
        (["encoder.module.a"], ["encoder.module.a"], ()),
    ],
)
def test_wrappers_are_stripped_to_a_fixed_point(keys: list[str], shown: list[str], stripped: tuple[str, ...]) -> None:
    found = opened(dict.fromkeys(keys, T))
    assert list(found) == shown
    assert found.stripped == stripped
    assert [found.stored_key(key) for key in found] == keys
    torch.save(dict.fromkeys(keys, T), "x.pth")
    assert list(cs.open_checkpoint("x.pth", unwrap=False)) == keys


def test_the_counter_of_an_averaged_model_is_set_aside() -> None:
    averaged = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2))
    found = opened(averaged.state_dict())
    assert list(found) == ["weight", "bias"]
    assert [extra.key for extra in found.extras] == ["n_averaged"]


def test_wrappers_that_the_destination_has_too_stay() -> None:
    raw = opened({"module.a": T}).unwrapped(destination=["module.a", "module.b"])
    assert list(raw) == ["module.a"]


def test_extras_are_shown_as_inert_values() -> None:
    value = {
        "w": T, "epoch": 41, "loss": 0.5, "name": "x", "none": None, "flag": True, "nan": float("nan"), "huge": 2**80,
        "args": argparse.Namespace(lr=1), "list": [1, 2], "long": list(range(100)), "nested": {"a": {"b": T}},
        "array": np.arange(3.0), "number": np.float64(2.5), "bytes": b"abc", "path": Path("x"), "set": {1},
        "dtype": torch.float32, "device": torch.device("cpu"), "size": torch.Size([1, 2]), "text": "x" * 5000,
        "counter": collections.Counter("aab"), "complex": 1 + 2j,
    }  # fmt: skip
    shown = {extra.key: (extra.type, extra.value) for extra in opened(value).extras}
    assert shown["epoch"] == ("int", 41)
    assert shown["loss"] == ("float", 0.5)
    assert shown["name"] == ("str", "x")
    assert shown["none"] == ("NoneType", None)
    assert shown["flag"] == ("bool", True)
    assert shown["nan"] == ("float", None)
    assert shown["huge"] == ("int", None)
    assert shown["args"] == ("argparse.Namespace", None)
    assert shown["list"] == ("list of 2", [1, 2])
    assert shown["long"] == ("list of 100", None)
    assert shown["nested"][0] == "dict of 1, 1 tensor in it"
    assert shown["array"][0] == "numpy.ndarray float64 (3,)"
    assert shown["number"] == ("float", 2.5)
    assert shown["bytes"][0] == "3 bytes"
    assert "Path" in shown["path"][0]
    assert shown["set"][0] == "set of 1"
    assert shown["dtype"][0] == "torch.float32"
    assert shown["size"] == ("tuple of 2", [1, 2])
    assert shown["text"] == ("str", None)
    assert shown["counter"][0] == "dict of 2"


def test_a_json_of_everything_has_no_nan() -> None:
    import json

    torch.save({"w": T, "loss": float("inf"), "deep": [float("nan")]}, "x.pth")
    json.dumps(cs.inspect("x.pth").to_json(), allow_nan=False)


def test_a_missing_file_says_so() -> None:
    with pytest.raises(cs.SourceError, match="nothing.pth does not exist"):
        cs.open_checkpoint("nothing.pth")


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"\x89HDF\r\n", "HDF5"), (b"version https://git-lfs.github.com", "Git LFS pointer"), (b"<!DOCTYPE html>", "web page"),
        (b"\x1f\x8b\x08", "gzip"), (bytes(257) + b"ustar", "tar archive"), (b"\x80\x04N.", "pickle that torch did not write"),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_says_what_it_looks_like(head: bytes, what: str) -> None:
    Path("x").write_bytes(head)
    with pytest.raises(cs.FormatError, match=what):
        cs.open_checkpoint("x")


def test_an_address_nothing_reads_says_so() -> None:
    with pytest.raises(cs.ConfigError, match="no installed package reads gopher://"):
        cs.open_checkpoint("gopher://x/y.pth")


def test_a_checkpoint_is_a_mapping_and_a_context() -> None:
    torch.save({"a": T, "b": T}, "x.pth")
    with cs.open_checkpoint("x.pth") as found:
        assert len(found) == 2
        assert "a" in found
        assert found["a"].numel == 2
        with pytest.raises(KeyError):
            _ = found["zzz"]
    with pytest.raises(cs.SourceError):
        found.tensor("a")


@pytest.mark.parametrize("order", [("step", "model", "optimizer"), ("optimizer", "model", "step")])
def test_the_state_of_an_optimizer_is_found_whatever_the_order_of_the_entries(order: tuple[str, ...]) -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    entries = {"step": torch.tensor(5), "model": layer.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({name: entries[name] for name in order}, "run.pth")
    with open_optimizer("run.pth") as found:
        assert found.root == "optimizer"


def test_counters_of_modules_at_the_top_are_the_state_dict() -> None:
    found = opened({"head": {"x": T}, "body.norm.num_batches_tracked": torch.tensor(0)})
    assert (found.root, list(found)) == ("", ["body.norm.num_batches_tracked"])
