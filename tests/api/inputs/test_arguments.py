"""Arguments of the verbs: of another type they are named, and what other libraries call a list or a dtype is taken."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import ckptsurgeon as cs
from ckptsurgeon.api.inputs.argument_types import KINDS

VERBS: dict[str, tuple[str, Callable[..., Any]]] = {
    "merge": ("models", cs.merge),
    "average": ("sources", cs.average),
    "transplant": ("source destination", cs.transplant),
    "lora_merge": ("base adapters", cs.lora_merge),
    "lora_extract": ("tuned base", cs.lora_extract),
    "lora_convert": ("adapter to", cs.lora_convert),
    "lora_resize": ("adapter", cs.lora_resize),
    "lora_concat": ("adapters", cs.lora_concat),
    "rename": ("source", cs.rename),
    "filter": ("source", cs.filter),
    "convert": ("source", cs.convert),
}
"""The verbs that plan, and what they need."""

PAIR = ["a.safetensors", "b.safetensors"]


@pytest.fixture(autouse=True)
def files() -> None:
    for seed, name in enumerate((*PAIR, "base.safetensors")):
        save_file({"w": np.random.default_rng(seed).standard_normal((4, 4), "f4")}, name)


def arguments() -> list[tuple[str, str]]:
    return [
        (name, one.name)
        for name, (_, verb) in VERBS.items()
        for one in inspect.signature(verb).parameters.values()
        if one.kind is not one.VAR_KEYWORD
    ]


@pytest.mark.parametrize(("verb", "argument"), arguments())
@pytest.mark.parametrize("wrong", [object(), [object()], {1: object()}], ids=["one", "a list", "a map"])
def test_an_argument_of_another_type_is_named(verb: str, argument: str, wrong: Any) -> None:
    needs, call = VERBS[verb]
    given = dict.fromkeys(needs.split(), PAIR if verb in ("merge", "average") else PAIR[0])
    with pytest.raises(cs.ConfigError, match=rf"^{verb}: the argument {argument} is .*, not \w"):
        call(**{**given, argument: wrong})


def test_every_annotation_is_in_the_table() -> None:
    others = ("Callable[[SearchResult], None] | None", "nn.Module")  # load_into says itself what is not a module
    checked = {name: verb for name in cs.__all__ if inspect.isfunction(verb := getattr(cs, name))}
    for name, verb in checked.items():
        for one in inspect.signature(verb).parameters.values() if hasattr(verb, "__wrapped__") else ():
            assert one.annotation in KINDS or one.annotation in others, f"{name} {one}"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: cs.apply(cs.convert(PAIR[0]), "out", axis=1), "axis is 1, not a list of strings"),
        (lambda: cs.average_windows(PAIR[0], "out", window=2), "sources is 'a.safetensors', not a list of paths"),
        (lambda: cs.greedy_soup(PAIR, "out", maximize="no"), "maximize is 'no', not true or false"),
        (lambda: cs.apply_patch(PAIR[0], [3], "out"), r"patches is \[3\], not a path or a list of paths"),
    ],
)
def test_arguments_of_verbs_that_write_are_checked_too(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(cs.ConfigError, match=says):
        call()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: cs.verify(PAIR[0], plan=3), "verify: the argument plan is 3, not a plan or a path."),  # type: ignore[arg-type]
        (
            lambda: cs.verify(PAIR[0], sources={"a": 3}),
            "verify: the argument sources is {'a': 3}, not a map from names ",
        ),  # type: ignore[dict-item]
        (lambda: cs.diff(*PAIR, values=True, rtol="1"), "diff: the argument rtol is '1', not a number."),  # type: ignore[arg-type]
        (lambda: cs.check(PAIR[0], skip=3), "check: the argument skip is 3, not a string or a list of strings."),  # type: ignore[arg-type]
        (lambda: cs.compare_changes(PAIR[0], 3), "compare_changes: the argument models is 3, not a list of paths, "),  # type: ignore[arg-type]
        (lambda: cs.fits(*PAIR, root=3), "fits: the argument root is 3, not a string."),  # type: ignore[arg-type]
        (lambda: cs.view(*PAIR, 3), "view: the argument more is 3, not a path, a checkpoint or a dict of tensors."),  # type: ignore[arg-type]
        (lambda: cs.train(sets="steps=3"), "train: the argument sets is 'steps=3', not a list of strings."),
        (lambda: cs.transcribe(3, []), "transcribe: the argument checkpoint is 3, not a path."),  # type: ignore[arg-type]
        (lambda: cs.load_into(torch.nn.Sequential(), PAIR[0], root=3), "load_into: the argument root is 3, not a "),  # type: ignore[arg-type]
        (lambda: cs.open_checkpoint(PAIR[0], 3), "open_checkpoint: the argument root is 3, not a string."),  # type: ignore[arg-type]
    ],
)
def test_arguments_of_verbs_that_only_read_are_checked_too(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(cs.ConfigError) as error:
        call()
    assert str(error.value).startswith(says)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"weights": 0.5}, "weights is 0.5, not a list of numbers."),
        ({"weights": "0.5,0.5"}, "weights is '0.5,0.5', not a list of numbers."),
        ({"weights": [True, 1]}, "weights is [True, 1], not a list of numbers."),
        ({"dtype": 7}, "dtype is 7, not the name of a dtype."),
        ({"on_mismatch": 3}, "on_mismatch is 3, not a policy"),
        ({"models": None}, "models is None, not a path, a checkpoint or a dict of tensors, or a list of these."),
        ({"base": 3}, "base is 3, not a path, a checkpoint or a dict of tensors."),
        ({"models": b"a.pth"}, "models is b'a.pth', not a path, "),
        ({"method": 7}, "method is 7, not a string."),
        ({"memory": 0.5}, "memory is 0.5, not a size, as in 512MB."),
        ({"seed": True}, "seed is True, not a whole number."),
        ({"density": None}, "density is None, not a number, "),
    ],
)
def test_what_merge_takes_is_said(given: dict[str, Any], says: str) -> None:
    with pytest.raises(cs.ConfigError) as error:
        cs.merge(**{"models": PAIR, "method": "linear", **given})
    assert str(error.value).startswith(f"merge: the argument {says}")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"memory": "lots"}, r"memory=.lots. is not a valid size."),
        ({"memory": 8}, r"memory=.8. has no unit, so it means 8 bytes\. Write 8GB or 8MB, or 8B if it is bytes\."),
        (
            {"models": "a.safetensors"},
            r"a\.safetensors is not a recipe\. Give a recipe of mergekit \(\.yaml\), or a list of models\.",
        ),
        ({"models": []}, r"linear needs at least 1 model, but there is none\."),
        ({"method": "LINEAR"}, r"there is no merge method LINEAR\. Did you mean linear\?"),
        ({"method": "dare-ties"}, r"Did you mean dare_ties\?"),
        (
            {"on_mising": "skip"},
            r"on_mising is neither an argument of merge nor a parameter of the method linear\. Did you mean on_missing\?",
        ),
        (
            {"normalise": True},
            r"normalise is neither an argument of merge nor a parameter of the method linear\. Did you mean normalize\?",
        ),
        ({"normalize": {}}, r"normalize is an empty map\."),
    ],
)
def test_what_is_of_the_type_and_still_wrong_says_what_to_do(given: dict[str, Any], says: str) -> None:
    with pytest.raises(cs.ConfigError, match=says):
        cs.merge(**{"models": PAIR, "method": "linear", "weights": [1, 1], **given})


@pytest.mark.parametrize("weights", [(1, 3), np.array([1, 3], "f4"), torch.tensor([1.0, 3.0]), iter([1, 3])])
def test_numbers_may_come_in_any_list(weights: Any) -> None:
    (step,) = cs.merge(iter(map(Path, PAIR)), method="linear", weights=weights).steps
    assert step.merge is not None
    assert step.merge.parameters["weight"] == (1.0, 3.0)


def test_a_number_may_be_numpy_s() -> None:
    (step,) = cs.merge(PAIR, method="ties", base=Path("base.safetensors"), density=np.float32(0.5)).steps
    assert step.merge is not None
    assert step.merge.parameters["density"] == (0.5, 0.5)


def test_a_dtype_may_be_torch_s() -> None:
    (step,) = cs.merge(PAIR, method="linear", weights=[1, 1], dtype=torch.bfloat16, compute=torch.float64).steps
    assert step.merge is not None
    assert (step.dtype, step.merge.compute) == ("bfloat16", "float64")
    assert cs.merge(PAIR, method="linear", weights=[1, 1], dtype=torch.half).steps[0].dtype == "float16"
    assert cs.transplant(Path(PAIR[0]), Path(PAIR[1]), dtype=torch.bfloat16).steps[0].dtype == "bfloat16"
    assert cs.convert(PAIR[0], dtype=torch.float64).steps[0].dtype == "float64"


@pytest.mark.long
def test_types_are_checked_without_torch() -> None:
    code = (
        "import sys, ckptsurgeon as cs\n"
        "cs.merge(sys.argv[1:], method='linear', weights=[1, 1], dtype='bf16')\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, *PAIR], capture_output=True, timeout=60)
    assert not done.returncode, done.stderr
