"""Adapters, held against torch, numpy and the formulas of the papers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from ckptsurgeon.engine.resample.resample import apply_taps, resampled
from ckptsurgeon.engine.resample.resize_in_parts import adaptation_box, adapted, centred, pseudo_inverse
from ckptsurgeon.planning.mismatch.policies import fit
from ckptsurgeon.tensors.ops.regions import Array, blocks

from ...helpers.depth import examples_of

Shape = tuple[int, ...]


def whole(shape: Shape) -> tuple[tuple[int, int], ...]:
    return tuple((0, size) for size in shape)


def run(policy: str, values: Array, shape: Shape) -> Array:
    """What a policy makes of values, in one piece, after it was found to fit."""
    found = fit(policy, values.shape, shape, "float64")
    assert found.op == policy.partition(":")[0], found.why
    part = adaptation_box(found.policy, whole(shape), source=values.shape, destination=shape)
    given = values[tuple(slice(*ends) for ends in part)]
    return adapted(found.policy, given, part, whole(shape), source=values.shape, destination=shape)


def noise(*shape: int) -> Array:
    values: Array = np.random.default_rng(0).standard_normal(shape)
    return values


@pytest.mark.costly
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_resampling_is_torch_s_for_every_pair_of_small_sizes(method: str, antialias: bool) -> None:
    for have in range(1, 18):
        values = torch.eye(have, dtype=torch.float64)
        for want in range(1, 18):
            theirs = functional.interpolate(
                values[None, None], size=(want, have), mode=method, antialias=antialias, align_corners=False
            )
            ours = apply_taps(
                values.numpy(), 0, resampled(have, want, method, antialias=antialias), rows=(0, want), first=0
            )
            np.testing.assert_allclose(ours, theirs[0, 0].numpy(), rtol=0, atol=1e-14)


def resample_abs_pos_embed(table: torch.Tensor, size: tuple[int, int], prefix: int, **how: Any) -> torch.Tensor:
    """timm's function of that name, for a square of old positions."""
    kept, grid = table[:, :prefix], table[:, prefix:]
    side = math.isqrt(grid.shape[1])
    grid = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=size, align_corners=False, **how)
    return torch.cat([kept, grid.permute(0, 2, 3, 1).reshape(1, size[0] * size[1], -1)], dim=1)


@pytest.mark.parametrize("how", [("bicubic", "yes"), ("bicubic", "no"), ("bilinear", "yes"), ("bilinear", "no")])
@pytest.mark.parametrize(("prefix", "side", "size"), [(0, 4, 7), (1, 14, 24), (2, 7, 4), (1, 6, 2), (1, 1, 3)])
def test_a_square_of_positions_is_resampled_and_what_stands_before_it_kept(
    prefix: int, side: int, size: int, how: tuple[str, str]
) -> None:
    table = noise(1, prefix + side * side, 5)
    method, antialias = how
    made = run(f"positions-2d:method={method},antialias={antialias}", table, (1, prefix + size * size, 5))
    theirs = resample_abs_pos_embed(
        torch.from_numpy(table), (size, size), prefix, mode=method, antialias=antialias == "yes"
    )
    np.testing.assert_allclose(made, theirs.numpy(), rtol=0, atol=1e-14)
    assert (made[:, :prefix] == table[:, :prefix]).all()


def test_grids_that_are_no_squares_are_named() -> None:
    table = noise(1, 2 + 12 * 101, 3)  # the spectrogram transformer: frequency by time, two tokens before
    made = run("positions-2d:from=12x101,to=12x40,method=bilinear,antialias=no", table, (1, 2 + 12 * 40, 3))
    grid = torch.from_numpy(table[:, 2:]).reshape(1, 12, 101, 3).permute(0, 3, 1, 2)
    theirs = functional.interpolate(grid, size=(12, 40), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(made[:, 2:], theirs.permute(0, 2, 3, 1).reshape(1, 480, 3).numpy(), atol=1e-14)


@pytest.mark.parametrize("prefix", [0, 2])
def test_a_line_of_positions_is_linear(prefix: int) -> None:
    table = noise(prefix + 10, 4)
    made = run(f"positions-1d:prefix={prefix}", table, (prefix + 25, 4))
    line = torch.from_numpy(table[prefix:]).T[None]
    theirs = functional.interpolate(line, size=25, mode="linear", align_corners=False)[0].T
    np.testing.assert_allclose(made[prefix:], theirs.numpy(), atol=1e-14)
    assert (made[:prefix] == table[:prefix]).all()


def resample_patch_embed(kernel: Array, size: tuple[int, int], **how: Any) -> Array:
    """timm's function of that name: the pseudo-inverse of the whole resize, as FlexiViT defines it."""
    old = kernel.shape[2:]
    columns = []
    for index in range(old[0] * old[1]):
        basis = np.zeros(old)
        basis[np.unravel_index(index, old)] = 1.0
        made = functional.interpolate(torch.from_numpy(basis)[None, None], size=size, **how)
        columns.append(made[0, 0].numpy().reshape(-1))
    inverse = np.linalg.pinv(np.stack(columns))  # of the transpose of the matrix (new, old)
    return np.array([[(inverse @ k.reshape(-1)).reshape(size) for k in row] for row in kernel])


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (14, 14), (5, 20), (16, 12)])
@pytest.mark.parametrize("how", [("bicubic", "yes"), ("bilinear", "no")])
def test_a_patch_embedding_is_resized_by_the_pseudo_inverse(size: tuple[int, int], how: tuple[str, str]) -> None:
    kernel = noise(3, 2, 16, 16)
    made = run(f"patch:method={how[0]},antialias={how[1]}", kernel, (3, 2, *size))
    theirs = resample_patch_embed(kernel, size, mode=how[0], antialias=how[1] == "yes")
    np.testing.assert_allclose(made, theirs, rtol=0, atol=1e-12)


def test_a_larger_patch_of_a_larger_image_gives_what_the_patch_gave() -> None:
    kernel, image = noise(4, 3, 8, 8), noise(3, 8, 8)
    larger = functional.interpolate(torch.from_numpy(image)[None], size=(12, 12), mode="bilinear")[0].numpy()
    made = run("patch:method=bilinear,antialias=no", kernel, (4, 3, 12, 12))
    before = np.einsum("oihw,ihw->o", kernel, image)
    np.testing.assert_allclose(np.einsum("oihw,ihw->o", made, larger), before, atol=1e-12)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_the_pseudo_inverse_is_numpy_s(method: str, antialias: bool) -> None:
    for have, want in [(1, 4), (4, 1), (7, 7), (8, 9), (9, 8), (14, 32), (32, 14), (16, 40)]:
        matrix = apply_taps(
            np.eye(have), 0, resampled(have, want, method, antialias=antialias), rows=(0, want), first=0
        )
        np.testing.assert_allclose(pseudo_inverse(matrix.T.tolist()), np.linalg.pinv(matrix.T), atol=1e-12)


@pytest.mark.parametrize(("inputs", "wanted"), [(3, 1), (1, 3), (3, 4), (3, 6), (3, 2), (1, 8), (2, 1)])
def test_input_channels_are_summed_or_repeated_and_rescaled(inputs: int, wanted: int) -> None:
    kernel = noise(5, inputs, 7, 7)
    if wanted == 1:
        theirs = sum(kernel[:, i : i + 1] for i in range(inputs))
    else:  # timm's adapt_input_conv
        repeated = np.tile(kernel, (1, math.ceil(wanted / inputs), 1, 1))[:, :wanted]
        theirs = repeated * (inputs / wanted)
    assert (run("channels", kernel, (5, wanted, 7, 7)) == theirs).all()
    assert (run("channels", kernel[..., 0], (5, wanted, 7)) == theirs[..., 0]).all()  # type: ignore[index]


def test_channels_keep_what_a_grey_image_gives() -> None:
    kernel, image = noise(4, 3, 3, 3), noise(1, 3, 3)
    before = np.einsum("oihw,ihw->o", kernel, np.repeat(image, 3, 0))
    for wanted in (1, 6):
        made = run("channels", kernel, (4, wanted, 3, 3))
        after = np.einsum("oihw,ihw->o", made, np.repeat(image, wanted, 0))
        np.testing.assert_allclose(after, before, atol=1e-12)


def test_a_kernel_in_the_middle_of_a_larger_one_gives_the_same_convolution() -> None:
    kernel = torch.randn(4, 2, 3, 1, dtype=torch.float64)
    shape = (4, 2, 7, 5)
    made = centred(
        lambda part: kernel[tuple(slice(*ends) for ends in part)].numpy(),
        np.dtype("f8"),
        whole(shape),
        source=kernel.shape,
        destination=shape,
    )
    image = torch.randn(1, 2, 9, 9, dtype=torch.float64)
    before = functional.conv2d(image, kernel, padding=(1, 0))
    after = functional.conv2d(image, torch.from_numpy(made), padding=(3, 2))
    torch.testing.assert_close(after, before)
    assert (made != 0).sum() == kernel.numel()


grids = st.tuples(st.integers(1, 6), st.integers(1, 6))


@st.composite
def adaptations(draw: st.DrawFn, *, same: bool = False) -> tuple[str, Shape, Shape]:
    """A policy and two shapes that it fits, or one shape twice."""
    kind = draw(st.sampled_from(["positions-1d", "positions-2d", "patch", "channels"]))
    method = f"method={draw(st.sampled_from(['bicubic', 'bilinear']))},antialias={draw(st.sampled_from(['yes', 'no']))}"
    prefix, old = draw(st.integers(0, 3)), draw(grids)
    new = old if same else draw(grids)
    if kind == "patch":
        return f"patch:{method}", (2, 2, *old), (2, 2, *new)
    if kind == "channels":
        inputs = draw(st.sampled_from([1, 3]))
        return kind, (2, inputs, 3), (2, inputs if same else draw(st.integers(1, 7)), 3)
    if kind == "positions-1d":
        return f"{kind}:prefix={prefix}", (prefix + old[0], 3), (prefix + new[0], 3)
    sizes = f"from={old[0]}x{old[1]},to={new[0]}x{new[1]}"
    return f"{kind}:{sizes},{method}", (1, prefix + old[0] * old[1], 3), (1, prefix + new[0] * new[1], 3)


@pytest.mark.long
@examples_of(60)
@given(adaptations(), st.integers(1, 40))
def test_blocks_of_an_adapted_tensor_are_the_whole_bit_for_bit(case: tuple[str, Shape, Shape], limit: int) -> None:
    policy, have, want = case
    values = noise(*have)
    made = run(policy, values, want)
    spelled = fit(policy, have, want, "float64").policy
    for box in blocks(want, limit):
        part = adaptation_box(spelled, box, have, want)
        given_part = values[tuple(slice(*ends) for ends in part)]
        block = adapted(spelled, given_part, part, box, source=have, destination=want)
        assert block.tobytes() == np.ascontiguousarray(made[tuple(slice(*ends) for ends in box)]).tobytes()


@examples_of(40)
@given(adaptations(same=True))
def test_the_same_size_is_the_same_tensor(case: tuple[str, Shape, Shape]) -> None:
    policy, shape, _ = case
    values = noise(*shape)
    assert (run(policy, values, shape) == values).all()


@examples_of(60)
@given(adaptations())
def test_a_policy_spelled_out_spells_itself(case: tuple[str, Shape, Shape]) -> None:
    policy, have, want = case
    spelled = fit(policy, have, want, "float32").policy
    assert fit(spelled, have, want, "float32").policy == spelled
