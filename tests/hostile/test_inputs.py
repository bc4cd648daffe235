"""Plans, recipes, configurations, adapters' settings, vocabularies and map files that others have written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

from ..promises.clauses import INPUTS
from .case import Case, Refusal, each
from .holding import held

config, pattern = Refusal("ConfigError", ""), Refusal("PatternError", "")
DEEP = '{"a":' + "[" * 100_000
DIGITS = '{"a":' + "9" * 100_000 + "}"

Texts = dict[str, tuple[Refusal, Any]]


def as_bytes(content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    return (content if isinstance(content, str) else json.dumps(content)).encode()


def source() -> None:
    torch.save({"encoder.weight": torch.ones(2, 3), "out.bias": torch.ones(4)}, "a.pth")


def file(path: str, content: Any, beside: Callable[[], None] = source) -> Callable[[], str]:
    def make() -> str:
        beside()
        Path(path).write_bytes(as_bytes(content))
        return path

    return make


def cases(texts: Texts, kind: str, make: Callable[[Any], Callable[[], str]], *command: str) -> list[Case]:
    return [Case(f"{kind}: {name}", INPUTS, refusal, make(text), (command,)) for name, (refusal, text) in texts.items()]


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[], str]:
    """A plan of a conversion, changed."""

    def make() -> str:
        source()
        plan = cs.convert("a.pth").to_json()
        change(plan)
        Path("p.json").write_text(json.dumps(plan))
        return "p.json"

    return make


def step(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda plan: plan["steps"][0].update(changes)


BAD_JSON: Texts = {
    "no JSON": (config, "{"),
    "nothing": (config, ""),
    "no UTF-8": (config, b'{"\xff": 1}'),
    "nested without end": (config, DEEP),
    "a number without end": (config, DIGITS),
    "a list": (config, "[]"),
    "a key twice": (config, '{"a": 1, "a": 1}'),
}

PLANS: dict[str, tuple[Refusal, Callable[[dict[str, Any]], object]]] = {
    "another version": (config, lambda p: p.update(version=99)),
    "another kind": (config, lambda p: p.update(kind="ckpt.inspect")),
    "no steps": (config, lambda p: p.update(steps=None)),
    "no seed": (config, lambda p: p.update(seed=float("nan"))),
    "an op that is none": (config, step(op="exec")),
    "a dtype that is none": (config, step(dtype="object")),
    "a key that is no text": (config, step(key=None)),
    "a size below zero": (config, step(shape=[-1])),
    "a size beyond int64": (config, step(shape=[2**62, 2**62])),
    "a tie to itself": (config, step(tied_to="encoder.weight")),
    "a key twice": (config, lambda p: p["steps"].append(p["steps"][0])),
    "a fingerprint that is none": (config, lambda p: p["sources"][0]["files"][0].update(size="x")),
    "a source that is a device": (Refusal("SourceError", ""), lambda p: p["sources"][0].update(path="/dev/zero")),
    "a source with a NUL": (Refusal("SourceError", ""), lambda p: p["sources"][0].update(path="a\0b")),
    "another source": (Refusal("PlanError", ""), lambda p: p["sources"][0]["files"][0].update(sha256="0" * 64)),
    "a key that the source lacks": (Refusal("PlanError", ""), lambda p: p["steps"][0]["from"].update(key="nope")),
}  # fmt: skip

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{c}: &{c} [{', '.join([f'*{b}'] * 9)}]\n" for b, c in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML: Texts = {
    "aliases that nest": (config, LAUGHS),
    "a call": (config, '!!python/object/apply:os.system ["touch canary"]\n'),
    "a call of a constructor": (config, 'a: !!python/object/new:os.system ["touch canary"]\n'),
    "a module": (config, "a: !!python/module:antigravity\n"),
    "nested without end": (config, "a: " + "[" * 100_000),
    "a key twice": (config, "a: 1\na: 2\n"),
    "a control character": (config, 'a: "\0"\n'),
    "no UTF-8": (config, b"a: \xff\n"),
    "what holds itself": (config, "a: &a [*a]\n"),
    "an alias of nothing": (config, "<<: *x\n"),
    "a number without end": (config, f"seed: {'9' * 10_000}\n"),
    "a list": (config, "- a\n"),
    "nothing": (config, ""),
}

PEFT = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
ADAPTERS: Texts = {
    **BAD_JSON,
    "a rank of 400 digits": (config, {**PEFT, "r": 10**400}),
    "a rank that is text": (config, {**PEFT, "r": "2"}),
    "a rank of zero": (config, {**PEFT, "r": 0}),
    "an alpha that is no number": (config, '{"peft_type": "LORA", "r": 2, "lora_alpha": NaN}'),
    "an alpha without end": (config, '{"peft_type": "LORA", "r": 2, "lora_alpha": 1e999}'),
    "a pattern without end": (config, {**PEFT, "rank_pattern": {"(a+)+" * 10: 2}}),
    "another pattern without end": (config, {**PEFT, "alpha_pattern": {"(.*)*(.*)*x": 2}}),
    "a pattern that is none": (config, {**PEFT, "rank_pattern": {"(": 2}}),
    "another kind": (config, {**PEFT, "peft_type": "\x1b[31mX"}),
}

VOCABULARIES: dict[str, tuple[str, Any]] = {
    "a token twice": ("t.txt", "a\na\nb\nc\n"),
    "a zero byte": ("t.txt", "a\n\0\nb\nc\n"),
    "no UTF-8": ("t.txt", b"\xff\n"),
    "nothing": ("t.txt", ""),
    "a NumPy file": ("t.npy", b"\x93NUMPY"),
    "a tokenizer nested without end": ("tokenizer.json", DEEP),
    "a tokenizer without a model": ("tokenizer.json", {}),
    "a tokenizer of a list": ("tokenizer.json", {"model": {"type": "BPE", "vocab": [1]}, "added_tokens": [{"id": "x"}]}),
    "a number beyond all": ("vocab.json", {"a": 2**62}),
    "a number without end": ("vocab.json", DIGITS),
    "a number below zero": ("vocab.json", {"a": -1}),
    "a number twice": ("vocab.json", {"a": 0, "b": 0}),
    "a token with two numbers": ("vocab.json", '{"a": 0, "b": 1, "a": 2}'),
    "a number left out": ("vocab.json", {"a": 0, "b": 1_000_000}),
    "a number that is a flag": ("vocab.json", {"a": True}),
    "sentencepiece that is cut short": ("t.model", b"\x0a\xff\xff\xff\xff\x0f"),
}  # fmt: skip

MAPS: Texts = {
    "no UTF-8": (config, b"\xff=a\n"),
    "nothing": (config, ""),
    "a NUL": (pattern, "a\0=b\n"),
    "no rule": (pattern, "encoder\n"),
    "a brace that stays open": (pattern, "{a,b=x\n"),
    "a billion names": (pattern, "x{0..1000000000}=y\n"),
    "ranges that multiply": (pattern, "{0..99}{0..99}{0..99}=y\n"),
    "no regular expression": (pattern, "re:(=x\n"),
    "ten thousand rules": (pattern, "a=b\n" * 10_000),
    "a pattern of ten megabytes": (pattern, "a" * 10_000_000 + "=b\n"),
    "two hundred times **": (pattern, "**." * 200 + "x=y\n"),
    "five thousand stars": (pattern, "*" * 5000 + "=y\n"),
    "a capture that is not there": (pattern, "encoder={9}\n"),
    "a number without end": (pattern, f"encoder.{{n}}={{n+{'9' * 5000}}}\n"),
}


def adapter(content: Any) -> Callable[[], str]:
    def beside() -> None:
        os.mkdir("ad")
        save_file({"base.weight": torch.ones(4, 4)}, "base.safetensors")
        factors = {"lora_A": torch.ones(2, 4), "lora_B": torch.ones(4, 2)}
        save_file({f"base_model.model.base.{k}.weight": v for k, v in factors.items()}, "ad/adapter_model.safetensors")

    return file("ad/adapter_config.json", content, beside)


def vocabulary(case: tuple[str, Any]) -> Callable[[], str]:
    def beside() -> None:
        source()
        Path("tokens.txt").write_text("a\nb\nc\nd\ne\n")
        tensors = "encoder.weight: {shape: [2, 3], init: zeros}\n    out.bias: {shape: [5], init: zeros}\n"
        Path("dst.yaml").write_text(f"model:\n  tensors:\n    {tensors}")

    make = file(*case, beside)
    return lambda: f"{make()}:tokens.txt"


CASES = [
    *cases(BAD_JSON, "plan", lambda text: file("p.json", text), "apply", "{}", "-o", "out.pth"),
    *cases(PLANS, "plan", edited, "apply", "{}", "-o", "out.pth"),
    *cases(YAML, "recipe", lambda text: file("r.yaml", text), "apply", "{}", "-o", "out.pth"),
    *cases(YAML, "merge", lambda text: file("r.yaml", text), "merge", "{}", "-o", "out.safetensors"),
    *cases(YAML, "destination", lambda text: file("r.yaml", text), "transplant", "a.pth", "{}", "-o", "out.pth"),
    *cases(ADAPTERS, "adapter", adapter, "lora", "merge", "base.safetensors", "ad", "-o", "out.safetensors"),
    *cases(
        {name: (config, named) for name, named in VOCABULARIES.items()}, "vocabulary", vocabulary,
        "transplant", "a.pth", "dst.yaml", "--vocab", "{}", "--vocab-keys", "out.bias", "-o", "out.pth",
    ),
    *cases(MAPS, "map", lambda text: file("m.map", text), "rename", "a.pth", "--map-file", "{}", "-o", "out.pth"),
]  # fmt: skip


@each(CASES, ("map: a pattern of ten megabytes",))
def test_what_others_have_written_is_refused(case: Case, ckpt: Any) -> None:
    held(case, ckpt)
