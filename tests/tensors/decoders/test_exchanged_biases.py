"""MLX's scales and biases that were exchanged, or of which one lost its sign, are named; those that MLX makes never."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.tensors.decoders._scale_tests import odd_biases
from ckptsurgeon.tensors.odd_scales.kinds import EXCHANGED, NARROW, OPPOSED, SAID

from ...helpers.coded_matrices import SETTINGS, Encode, mlx, old_mlx, save_model

Parts = dict[str, torch.Tensor]
SHAPE = (128, 256)
LAYERS = tuple(f"model.layers.{number}.mlp.up_proj" for number in range(5))


def normal(seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) * 0.02


def uniform() -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))


WEIGHTS: dict[str, Callable[[], torch.Tensor]] = {
    "normal": normal,
    "a little shifted": lambda: normal() + 0.006,
    "shifted": lambda: normal() + 0.02,
    "almost all positive": lambda: normal() + 0.06,
    "almost all negative": lambda: normal() - 0.06,
    "all positive": lambda: normal() + 0.5,
    "from 0 to 1": uniform,
    "heavy tails": lambda: normal() / (uniform() + 1e-3),
    "outliers": lambda: normal() + 3 * (uniform() > 0.999),
    "rows of other sizes": lambda: normal() * torch.logspace(-3, 2, SHAPE[0])[:, None],
    "without negative ones": lambda: normal().relu(),
    "sparse": lambda: normal() * (uniform() > 0.98),
    "ternary": lambda: normal().mul(40).round().clamp(-1, 1),
    "two values": lambda: normal().sign(),
    "zeros and ones": lambda: (uniform() > 0.5).float(),
    "one value": lambda: torch.full(SHAPE, 0.3),
    "zeros": lambda: torch.zeros(SHAPE),
    "rows of zeros": lambda: normal() * (torch.arange(SHAPE[0]) % 2)[:, None],
    "tiny": lambda: normal() * 1e-5,
    "tiny and positive": lambda: normal().abs() * 1e-5,
    "smaller than a scale": lambda: torch.where(torch.arange(SHAPE[0])[:, None] < 100, 4e-8, 6e-8).expand(SHAPE),
}


def kinds(parts: Parts, bits: int = 4) -> list[str]:
    return list(odd_biases(bits, *(parts[end].float().numpy() for end in (".scales", ".biases"))))


@pytest.mark.parametrize("encode", [mlx, old_mlx])
@pytest.mark.parametrize("name", WEIGHTS)
def test_what_mlx_makes_is_usual(name: str, encode: Callable[..., Parts]) -> None:
    weight = WEIGHTS[name]()
    for bits, group, dtype in product((2, 4, 8), (32, 128), (torch.float16, torch.bfloat16)):
        assert kinds(encode(weight, bits=bits, group=group, dtype=dtype), bits) == []


def exchanged(parts: Parts) -> Parts:
    return {**parts, ".scales": parts[".biases"], ".biases": parts[".scales"]}


def opposed(parts: Parts) -> Parts:
    return {**parts, ".scales": -parts[".scales"]}


def model(change: Callable[[Parts], Parts], encode: Encode, layers: int = len(LAYERS), **settings: int) -> Path:
    """A model in which the first ``layers`` of five layers are changed."""
    coded = {name: encode(normal(number)) for number, name in enumerate(LAYERS)}
    changed = {name: change(parts) if name in LAYERS[:layers] else parts for name, parts in coded.items()}
    return save_model(Path("m"), {**SETTINGS["mlx"], **settings}, changed)


def notes(path: Path) -> list[str]:
    told = cs.apply(cs.convert(path, dequantize=True), "out.safetensors", force=True).notes
    return [one for one in told if any(said in one for said in SAID.values())]


def checked(path: Path) -> list[tuple[str, str, tuple[str, ...]]]:
    rows = cs.check(path, skip=["model-card", "class-tensors"]).rows
    return [(row.id, one.status.value, one.keys) for row in rows for one in row.found]


@pytest.mark.parametrize(
    ("encode", "settings"),
    [(mlx, {}), (old_mlx, {}), (partial(mlx, bits=8), {"bits": 8}), (partial(mlx, group=32), {"group_size": 32})],
)
@pytest.mark.parametrize("layers", [0, 1, len(LAYERS)])
def test_exchanged_scales_and_biases_are_named(encode: Encode, settings: dict[str, int], layers: int) -> None:
    path = model(exchanged, encode, layers, **settings)
    names = LAYERS[:layers]
    assert [SAID[EXCHANGED] in one for one in notes(path)] == ([True] if layers else [])
    wanted = [("scales", "FAIL", tuple(f"{name}.scales" for name in names))] if layers else []
    assert [one for one in checked(path) if one[0] == "scales" or not layers] == wanted


@pytest.mark.parametrize("encode", [mlx, old_mlx])
def test_scales_with_the_sign_of_their_biases_are_named(encode: Encode) -> None:
    path = model(opposed, encode)
    assert [one for one in notes(path) if SAID[OPPOSED] in one]
    assert ("scales", "FAIL", tuple(f"{name}.weight" for name in LAYERS)) in checked(path)


def all_negative(parts: Parts) -> Parts:
    return {**parts, ".scales": -parts[".scales"].abs()}


def a_quarter(parts: Parts) -> Parts:
    scales = parts[".scales"].clone()
    scales[: len(scales) // 4] *= -1
    return {**parts, ".scales": scales}


@pytest.mark.parametrize("change", [all_negative, a_quarter])
@pytest.mark.parametrize("encode", [mlx, old_mlx])
def test_a_part_of_the_signs_that_were_changed_is_named(encode: Encode, change: Callable[[Parts], Parts]) -> None:
    (said,) = [one for one in notes(model(change, encode, 1)) if SAID[OPPOSED] in one]
    assert said == f"m: 1 quantised tensor has {SAID[OPPOSED]}: {LAYERS[0]}.weight"


def narrow(parts: Parts) -> Parts:
    """Scales of codes of eight bits, which are 17 times smaller, beside codes of four."""
    return {**parts, ".scales": parts[".scales"] / 17}


def test_scales_of_codes_of_more_bits_are_named() -> None:
    path = model(narrow, mlx, 2)
    (said,) = notes(path)
    assert said == f"m: 2 quantised tensors have {SAID[NARROW]}: {', '.join(f'{name}.weight' for name in LAYERS[:2])}"
    assert ("scales", "FAIL", tuple(f"{name}.weight" for name in LAYERS[:2])) in checked(path)


def test_statistics_and_merges_note_it() -> None:
    path = model(exchanged, mlx, 1)
    said = f"m: 1 quantised tensor has {SAID[EXCHANGED]}: {LAYERS[0]}.weight"
    assert said in cs.inspect(path, stats=True).notes
    assert said in cs.apply(cs.average([path, path], encoding="dequantize"), "average.safetensors").notes
