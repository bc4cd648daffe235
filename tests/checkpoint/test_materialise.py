"""Tensors that cannot be fetched are FormatErrors, whatever torch makes of their parts."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch

import ckptsurgeon as cs

from ..helpers.torch_files import variety


class Rebuilt:
    """Pickles as a call of one of torch's own functions."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.reduction = (function, args)

    def __reduce__(self) -> Any:
        return self.reduction


def opened(value: Any) -> cs.Checkpoint:
    torch.save({"a": value, "b": torch.ones(1)}, "x.pth")
    return cs.open_checkpoint("x.pth")


def sparse(indices: torch.Tensor, values: torch.Tensor, size: Any, layout: Any = torch.sparse_coo) -> Rebuilt:
    return Rebuilt(torch._utils._rebuild_sparse_tensor, layout, (indices, values, torch.Size(size), False))


def quantised(*params: Any) -> Rebuilt:
    args = VARIETY["quantised"].__reduce_ex__(2)[1]
    return Rebuilt(torch._utils._rebuild_qtensor, *args[:4], params, *args[5:])


VARIETY = variety()
INDICES, V = torch.tensor([[0, 5]]), torch.ones(2)
BAD = {
    "an index beyond the size": lambda: sparse(INDICES, V, (3,)),
    "a size of other dimensions": lambda: sparse(INDICES, V, (3, 3, 3)),
    "sparse parts of sparse parts": lambda: sparse(torch.ones(1, 2).to_sparse(), V, (3,)),
    "an unknown scheme": lambda: quantised("torch.nothing", 1, 2),
    "a scale that is none": lambda: quantised(torch.per_tensor_affine, "x", 2),
    "no parameters": lambda: quantised(),
}


@pytest.mark.parametrize("name", BAD)
def test_parts_that_do_not_fit_are_a_format_error(name: str) -> None:
    found = opened(BAD[name]())
    with pytest.raises(cs.FormatError) as caught:
        found.tensor("a")
    assert caught.value.exit_code == 3
    assert found.tensor("b").item() == 1


def test_what_cannot_be_rebuilt_names_key_and_file() -> None:
    with pytest.raises(cs.FormatError, match="^the tensor a of x.pth cannot be rebuilt: .*index"):
        opened(BAD["an index beyond the size"]()).tensor("a")


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("sparse", "it is sparse"),
        ("quantised", "it is quantised"),
        ("meta", "it was saved on the meta device, without values"),
        ("wrapped", "it is of the class argparse.Namespace"),
        ("over nothing", "its storage is None, not a storage of torch"),
    ],
)
def test_why_a_tensor_is_no_plain_bytes_is_a_clause(key: str, why: str) -> None:
    others = {
        "wrapped": Rebuilt(torch._utils._rebuild_wrapper_subclass, argparse.Namespace, torch.float32, torch.Size([2])),
        "over nothing": Rebuilt(torch._utils._rebuild_tensor_v2, None, 0, (2,), (1,), False, {}),
    }
    found = opened({**VARIETY, **others}[key])
    assert found["a"].opaque == why
    assert not found["a"].is_plain
    if key in others:
        with pytest.raises(cs.FormatError, match=f"the tensor a of x.pth cannot be read: {why}"):
            found.tensor("a")
