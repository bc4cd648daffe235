"""Which channels can be chosen together."""

from __future__ import annotations

import pytest

from ckptsurgeon.errors import PlanError
from ckptsurgeon.planning.resizing.axes import Axis
from ckptsurgeon.planning.resizing.select import check_channels


def axis(key: str, before: int, side: str) -> Axis:
    return Axis(key, 0, before, before // 2, side, "linear")


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ([axis("up", 8, "out")], "no layer was found that reads the channels that up computes"),
        ([axis("down", 8, "in")], "no layer was found that computes the channels that down reads"),
        ([axis("fused", 16, "in"), axis("down", 8, "in")], "how the channels of fused, down belong together"),
        ([axis("up", 16, "out"), axis("down", 8, "in")], "how the channels of up, down belong together"),
    ],
)
def test_channels_of_layers_that_do_not_fit_are_not_chosen(axes: list[Axis], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        check_channels("n_inner", [axes])
    check_channels("n_inner", [[axis("up", 8, "out"), axis("down", 8, "in")]])
