"""Configurations of destinations, as YAML: planned for; those that name code, which is the user's own, are left out."""

from pathlib import Path

import torch

import ckptsurgeon as cs

from .target import Files, Target, beside, ending

DOCUMENTS = {
    "like": "model: {like: a.pth}\n",
    "tensors": "model:\n  tensors:\n    a: {shape: [2, 3], dtype: float16, init: {normal: {std: 0.02}}}\n"
    "    b: {shape: [5], init: zeros}\n    c: {shape: [5], init: zeros}\n  tied: [[b, c]]\n",
    "bundled": "model: {name: deepspeech, alphabet: alphabet.txt, n_hidden: 4}\ntrain: {lr: 1e-3}\n",
    "blocks": "# a comment\nmodel:\n  tensors: {'a': &x {shape: [2, 3], init: {uniform: {a: -1, b: 1}}}, b: *x}\n",
}


def use(path: str) -> None:
    data = Path(path).read_bytes()
    if not any(mark in data for mark in (b"_target_", b"!", b"\\")):
        cs.transplant("a.pth", path, on_mismatch="init")


def make() -> Files:
    torch.save({"a": torch.ones(2, 3), "b": torch.ones(4), "layer_1.bias": torch.ones(4)}, "a.pth")
    more = {"a.pth": Path("a.pth").read_bytes(), "alphabet.txt": b"a\nb\n"}
    return {**more, **{f"{name}.yaml": text.encode() for name, text in DOCUMENTS.items()}}


TARGET = Target(beside("destinations", "input.yaml", use), make, ending(".yaml"))
