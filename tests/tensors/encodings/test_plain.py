"""A state dict that is plain at first sight has no quantised tensors, whatever encoding is asked."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptsurgeon.tensors.dtypes import DTYPES
from ckptsurgeon.tensors.find_codes import find_codes
from ckptsurgeon.tensors.info import TensorInfo
from ckptsurgeon.tensors.quantised.encoding import CODE_TYPES, PLAIN_NAMES, is_plain
from ckptsurgeon.tensors.quantised.search import _all_encodings, _long_endings, _part_endings, search_codes

ENDINGS = tuple({*_part_endings(), *(f".{end}" for end in _long_endings())})
FLOAT = TensorInfo("float32", (8, 8))


def test_no_part_of_a_quantised_tensor_is_plain() -> None:
    for end in ENDINGS:
        for key in (f"m{end}", f"layers.0.m.weight{end}", f"layers.0.x.m{end}", end.removeprefix(".")):
            found = f".{key}".endswith(end)
            assert not (found and is_plain({"m.weight": FLOAT, key: FLOAT})), key


def test_no_plain_name_ends_as_a_part() -> None:
    for name, end in itertools.product(PLAIN_NAMES, ENDINGS):
        assert not f".{name}".endswith(end), (name, end)


def test_no_codes_are_plain() -> None:
    """Codes have a dtype of codes, a name of codes, a mark beside them, or are an object of a pickle (torchao's)."""
    for one in _all_encodings():
        for dtype in one.dtypes - CODE_TYPES:
            for marks in [(mark,) for mark in one.marks] or [()]:
                keys = ["m" + end if end[:1] == "." else f"m.weight{end}" for end in (one.telling, *marks)]
                if one.telling or marks:
                    assert not is_plain({key: TensorInfo(dtype, (8, 8)) for key in keys}), (one.telling, dtype, marks)
                else:
                    assert search_codes({key: TensorInfo(dtype, (8, 8)) for key in keys}, dict, tuple).tensors == ()


@pytest.mark.parametrize(
    ("key", "info"),
    [
        ("m.weight", TensorInfo("float16", (64, 1))),  # words of bitsandbytes, stored as floats
        ("m.weight", TensorInfo("float32", (8, 8), opaque="an object")),
        ("m.weight", TensorInfo("float8_e4m3fn", (8, 8))), ("m.weight", TensorInfo("int8", (8, 8))),
        ("m.centroids.weight", FLOAT), ("res_centroids.weight", FLOAT), ("m.trellis", TensorInfo("int64", (8, 8))),
        ("m.weight_scale", FLOAT), ("m.Weight", FLOAT), ("weight.", FLOAT), ("m.weight\n", FLOAT), ("", FLOAT),
    ],
)  # fmt: skip
def test_what_only_looks_plain_is_searched(key: str, info: TensorInfo) -> None:
    assert not is_plain({key: info})


def test_plain_models_are_plain() -> None:
    keys = (
        "weight",
        "layers.0.norm.bias",
        "bn.running_var",
        "lstm.weight_hh_l1_reverse",
        "scales.weight",
        "lm_head.weight",
    )
    assert is_plain(dict.fromkeys(keys, FLOAT))
    assert is_plain({"bn.num_batches_tracked": TensorInfo("int64", ())})
    assert is_plain({})


@given(
    st.dictionaries(
        st.builds(
            lambda module, name: f"{module}.{name}",
            st.sampled_from(["m", "m.centroids", "n", "m.weight"]),
            st.sampled_from(
                [*sorted(PLAIN_NAMES)[:8], "weight", "bias", *(end.lstrip(".") for end in sorted(ENDINGS))]
            ),
        ),
        st.builds(
            TensorInfo,
            st.sampled_from(sorted(name for name, dtype in DTYPES.items() if not dtype.block)),
            st.sampled_from([(8, 8), (8, 1), (1,), (), (8,), (2, 8, 8)]),
        ),
        max_size=4,
    )
)
def test_what_is_plain_has_no_codes(tensors: dict[str, TensorInfo]) -> None:
    found = search_codes(tensors, dict, tuple)
    assert not (is_plain(tensors) and found)
    assert find_codes(tensors).by_key.keys() == found.by_key.keys()
