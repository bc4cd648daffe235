"""Errors in Python speak of arguments; on the command line of options."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache

import pytest

import ckptsurgeon as cs
from ckptsurgeon.util.arguments import NAMES, NUMBERS, OTHERS, SWITCHES, as_arguments, as_fields

from ..project.test_architecture import ROOT


@pytest.mark.parametrize(
    ("option", "argument"),
    [
        ("Use --on-mismatch x=init, or --exclude x.", 'Use on_mismatch="x=init", or exclude="x".'),
        ("Use --exclude 'a b'.", 'Use exclude="a b".'),
        ("Use --set a='b'.", """Use sets="a='b'"."""),
        ("Use --layout x, or --dequantize.", 'Use layout="x", or dequantize=True.'),
        ("--processes 0 is not a number.", "processes=0 is not a number."),
        ("--exclude=decoder matches no key.", 'exclude="decoder" matches no key.'),
        ("--force replaces it.", "force=True replaces it."),
        ("Or do without --strict.", "Or do without strict=True."),
        ("Leave it out with --exclude.", "Leave it out with exclude."),
        ("--vocab maps no tensor.", "vocab maps no tensor."),
        ("as in --weights 0.7,0.3.", "as in weights=[0.7, 0.3]."),
        ("for example --wait 60.", "for example wait=60."),
        ("There is the top level (--root .).", 'There is the top level (root=".").'),
        ("Allow more memory: --memory 3.5 GB.", 'Allow more memory: memory="3.5 GB".'),
        ("--no-constructor-weights loads none.", "constructor_weights=False loads none."),
        ("--param x=2 and --set lr=1", 'parameters="x=2" and sets="lr=1"'),
        ("--ignore-mismatch for all", 'on_mismatch="init" for all'),
        ("--explain takes keys, --explain x one of them.", 'keys takes keys, keys="x" one of them.'),
        ("--rtol and --atol need --values.", "rtol and atol need values=True."),
        ("--tokenizer and --trim cannot be used together.", "tokenizer and trim cannot be used together."),
        ("--include and --exclude choose tensors.", "include and exclude choose tensors."),
        ("--explain matches 30 tensors.", "keys matches 30 tensors."),
        ("--resume --controls runs them.", "resume=True controls=True runs them."),
        ("x is a folder, and --sha256 needs one file.", "x is a folder, and sha256 needs one file."),
        ("--timeout SECONDS waits longer.", 'CKPTSURGEON_TIMEOUT="SECONDS" waits longer.'),
        ("Name it: ckpt filter --exclude x.", "Name it: ckpt filter --exclude x."),
        ("ckpt verify out --plan p; --seed 3", "ckpt verify out --plan p; seed=3"),
        ("--json lists all, --nproc-per-node too", "--json lists all, --nproc-per-node too"),
        ("a--b, and -- alone", "a--b, and -- alone"),
    ],
)
def test_options_become_arguments(option: str, argument: str) -> None:
    assert as_arguments(option) == argument
    assert as_arguments(argument) == argument


def test_an_option_is_the_argument_of_the_verb_that_was_called() -> None:
    assert as_arguments("Add --set lr=1.", ("set", "source")) == 'Add set="lr=1".'
    assert as_arguments("Add --set lr=1.", ("source",)) == 'Add sets="lr=1".'


def parameters() -> Iterator[str]:
    for value in (getattr(cs, name) for name in cs.__all__):
        members = vars(value).values() if inspect.isclass(value) else ()
        for one in filter(inspect.isfunction, (value, *members)):
            yield from inspect.signature(one).parameters


def test_every_argument_that_is_named_exists() -> None:
    known = set(parameters())
    assert known > NAMES
    assert known > {argument.partition("=")[0] for argument in OTHERS.values()} - {"CKPTSURGEON_TIMEOUT"}
    assert NAMES > SWITCHES | NUMBERS


@pytest.mark.long
def test_every_option_in_a_text_that_is_an_argument_is_named() -> None:
    options = {name for text in texts() for name in re.findall(r"--([a-z][a-z-]*[a-z])\b", text) if "ckpt " not in text}
    arguments = set(parameters())
    assert {name for name in options if name.replace("-", "_") in arguments} <= {
        *(name.replace("_", "-") for name in NAMES), *OTHERS,
    }  # fmt: skip


@cache
def texts() -> tuple[str, ...]:
    """Return every text of the package that may name an option, but those of the command line; values are ``X``."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        if "cli" in path.relative_to(ROOT).parts or "--" not in (code := path.read_text()):
            continue
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
                )
    return tuple(found)


@pytest.mark.long
def test_no_text_of_the_package_keeps_an_option_that_is_an_argument() -> None:
    options = {f"--{name.replace('_', '-')}" for name in NAMES}
    found = [text for text in texts() if "ckpt " not in text and set(re.findall(r"--[a-z-]+\b", text)) & options]
    assert len(found) > 100
    assert [text for text in found if set(re.findall(r"(?<![a-z])--[a-z-]+\b", as_arguments(text))) & options] == []


def test_an_error_has_both() -> None:
    error = cs.PlanError("--strict: missing.", hint="Use --exclude x.")
    assert str(error) == 'strict=True: missing. Use exclude="x".'
    assert error.said == "--strict: missing. Use --exclude x."


@pytest.mark.parametrize(
    ("option", "field"),
    [
        ("Use --exclude 'a b', or --dequantize.", "Use exclude: 'a b', or dequantize: true."),
        ("as in --weights 0.7,0.3.", "as in weights: [0.7, 0.3]."),
        ("Leave it out with --exclude.", "Leave it out with exclude."),
        ("Use --to pth, or ckpt filter --exclude x.", "Use --to pth, or ckpt filter --exclude x."),
    ],
)
def test_options_of_a_recipe_are_fields(option: str, field: str) -> None:
    assert as_fields(option, {"exclude", "dequantize", "weights"}) == field
