"""Named conversions between two frameworks' layouts of one network, and the conditions under which they apply."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...formats.tf.coqui import CELL
from ...tensors.info import TensorInfo
from ...util.text import count
from ..target import KnownLayout, Recognise

__all__ = ["CONVERSIONS", "COQUI", "Conversion", "layouts_known"]

# A conversion between two frameworks' layouts of one network: bundled operations, and when they apply.


@dataclass(frozen=True)
class Conversion:
    """A named sequence of operations that converts a checkpoint of another framework; ``--ruleset`` accepts the name.

    ``rows`` are the operations, in the form that users write. ``converts`` decides by names and shapes whether these
    operations apply to a source. ``gives`` are the keys of the resulting tensors. ``description`` is for a note: what
    the source is, and how it is converted.
    """

    name: str
    description: str
    converts: Callable[[Mapping[str, TensorInfo]], bool]
    gives: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]


# Coqui STT's network in TensorFlow's layout and in PyTorch's, which is that of the bundled model ``deepspeech``.
#
# TensorFlow's dense weights are (in, out), PyTorch's (out, in). TensorFlow's LSTM has one kernel (input + hidden, 4 x
# hidden), input rows first, whose gates are input, candidate, forget, output (i, c, f, o; ``LSTMBlockCell``), and one
# bias. PyTorch's has a weight for the input and one for the hidden state, whose gates are input, forget, candidate,
# output (i, f, g, o; ``torch.nn.LSTM``), and two biases that it adds. TensorFlow's bias becomes the first of them, and
# the second is zero; the conversion back adds the two. Coqui's cell adds no forget bias while it runs
# (``forget_bias=0``), so the conversion does not add one to the stored bias either.

Shapes = dict[str, tuple[int, ...]]

_TENSORFLOW_GATES, _PYTORCH_GATES = "icfo", "ifco"


def _gates(order: str) -> list[str]:
    """Return temporary names for the parts of the LSTM's tensors, one name for each gate in ``order``."""
    return [f"lstm.gate_{gate}.*" for gate in order]


def _tensorflow(inputs: int, hidden: int, outputs: int) -> Shapes:
    """Return the variables of Coqui STT's network in TensorFlow, with their shapes."""
    dense = {1: (inputs, hidden), **dict.fromkeys((2, 3, 5), (hidden, hidden)), 6: (hidden, outputs)}
    weights: Shapes = {f"layer_{n}.weights": shape for n, shape in dense.items()}
    biases: Shapes = {f"layer_{n}.bias": shape[1:] for n, shape in dense.items()}
    return {**weights, **biases, f"{CELL}.kernel": (2 * hidden, 4 * hidden), f"{CELL}.bias": (4 * hidden,)}


def _pytorch(inputs: int, hidden: int, outputs: int) -> Shapes:
    """Return the parameters of the same network in PyTorch, with their shapes."""
    shapes: Shapes = {}
    for key, shape in _tensorflow(inputs, hidden, outputs).items():
        if not key.startswith(CELL):
            shapes[key.replace("weights", "weight")] = shape[::-1]
    for source in ("ih", "hh"):
        shapes[f"lstm.weight_{source}_l0"], shapes[f"lstm.bias_{source}_l0"] = (4 * hidden, hidden), (4 * hidden,)
    return shapes


def _is_tensorflow(tensors: Mapping[str, TensorInfo]) -> bool:
    first, last = tensors.get("layer_1.weights"), tensors.get("layer_6.bias")
    if first is None or last is None or len(first.shape) != 2 or len(last.shape) != 1:
        return False
    return _are(tensors, _tensorflow(*first.shape, *last.shape))


def _is_pytorch(tensors: Mapping[str, TensorInfo]) -> bool:
    first, last = tensors.get("layer_1.weight"), tensors.get("layer_6.bias")
    if first is None or last is None or len(first.shape) != 2 or len(last.shape) != 1:
        return False
    return _are(tensors, _pytorch(*first.shape[::-1], *last.shape))


def _are(tensors: Mapping[str, TensorInfo], shapes: Shapes) -> bool:
    return all(key in tensors and tensors[key].shape == shape for key, shape in shapes.items())


COQUI = (
    Conversion(
        name="coqui-stt",
        description="Coqui STT's layout in TensorFlow, converted to PyTorch's",
        converts=_is_tensorflow,
        gives=tuple(_pytorch(1, 1, 1)),
        rows=(
            {"copy": "layer_{n}.weights", "into": ["layer_{n}.weight"]},
            {"transpose": "layer_{1,2,3,5,6}.weight"},
            {"split": f"{CELL}.kernel", "into": ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]},
            {"transpose": "lstm.weight_*_l0"},
            {"copy": f"{CELL}.bias", "into": ["lstm.bias_ih_l0", "lstm.bias_hh_l0"]},
            {"scale": "lstm.bias_hh_l0", "by": 0},
            {"split": "lstm.*", "into": _gates(_TENSORFLOW_GATES)},
            {"concat": _gates(_PYTORCH_GATES), "into": "lstm.*"},
        ),
    ),
    Conversion(
        name="coqui-stt-tensorflow",
        description="Coqui STT's network in PyTorch's layout, converted to TensorFlow's",
        converts=_is_pytorch,
        gives=tuple(_tensorflow(1, 1, 1)),
        rows=(
            {"add": ["lstm.bias_ih_l0", "lstm.bias_hh_l0"], "into": "lstm.bias"},
            {"split": "lstm.*", "into": _gates(_PYTORCH_GATES)},
            {"concat": _gates(_TENSORFLOW_GATES), "into": "lstm.*"},
            {"transpose": "lstm.weight_*_l0"},
            {"concat": ["lstm.weight_ih_l0", "lstm.weight_hh_l0"], "into": f"{CELL}.kernel"},
            {"copy": "lstm.bias", "into": [f"{CELL}.bias"]},
            {"copy": "layer_{n}.weight", "into": ["layer_{n}.weights"]},
            {"transpose": "layer_{1,2,3,5,6}.weights"},
        ),
    ),
)


CONVERSIONS: Mapping[str, Conversion] = {one.name: one for one in COQUI}


def layouts_known(destination: Collection[str]) -> Recognise | None:
    """Return a function that finds the conversion of a source to the destination's layout.

    The result is None if no conversion makes the destination's keys.
    """
    fitting = [one for one in CONVERSIONS.values() if all(key in destination for key in one.gives)]
    return partial(_recognised, fitting) if fitting else None


def _recognised(conversions: Sequence[Conversion], source: Mapping[str, TensorInfo]) -> KnownLayout:
    for one in conversions:
        if one.converts(source):
            number = count(len(one.rows), "operation")
            note = f"the source is {one.description} ({number}, the same as --ruleset {one.name})"
            return KnownLayout(operations=one.rows, notes=(note,))
    return KnownLayout()
