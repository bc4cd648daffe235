"""Named conversions between two frameworks' layouts of one network, and the conditions under which they apply."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...formats.tf.coqui import CELL
from ...tensors.info import TensorInfo

__all__ = ["CONVERSIONS", "Conversion"]

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

TENSORFLOW = {
    "layer_1.weights": ("inputs", "hidden"), "layer_1.bias": ("hidden",),
    "layer_2.weights": ("hidden", "hidden"), "layer_2.bias": ("hidden",),
    "layer_3.weights": ("hidden", "hidden"), "layer_3.bias": ("hidden",),
    "layer_5.weights": ("hidden", "hidden"), "layer_5.bias": ("hidden",),
    "layer_6.weights": ("hidden", "outputs"), "layer_6.bias": ("outputs",),
    f"{CELL}.kernel": ("2 hidden", "4 hidden"), f"{CELL}.bias": ("4 hidden",),
}  # fmt: skip
"""{variable of Coqui STT's network in TensorFlow: its shape}."""
PYTORCH = {
    "layer_1.weight": ("hidden", "inputs"), "layer_1.bias": ("hidden",),
    "layer_2.weight": ("hidden", "hidden"), "layer_2.bias": ("hidden",),
    "layer_3.weight": ("hidden", "hidden"), "layer_3.bias": ("hidden",),
    "layer_5.weight": ("hidden", "hidden"), "layer_5.bias": ("hidden",),
    "layer_6.weight": ("outputs", "hidden"), "layer_6.bias": ("outputs",),
    "lstm.weight_ih_l0": ("4 hidden", "hidden"), "lstm.weight_hh_l0": ("4 hidden", "hidden"),
    "lstm.bias_ih_l0": ("4 hidden",), "lstm.bias_hh_l0": ("4 hidden",),
}  # fmt: skip
"""{parameter of the same network in PyTorch: its shape}."""
_TENSORFLOW_GATES = ["lstm.gate_i.*", "lstm.gate_c.*", "lstm.gate_f.*", "lstm.gate_o.*"]
_PYTORCH_GATES = ["lstm.gate_i.*", "lstm.gate_f.*", "lstm.gate_c.*", "lstm.gate_o.*"]
"""Temporary names for the parts of the LSTM's tensors, one name for each gate, in the order of each framework."""


def _is_tensorflow(tensors: Mapping[str, TensorInfo]) -> bool:
    first, last = tensors.get("layer_1.weights"), tensors.get("layer_6.bias")
    if first is None or last is None or len(first.shape) != 2 or len(last.shape) != 1:
        return False
    return _are(tensors, TENSORFLOW, *first.shape, *last.shape)


def _is_pytorch(tensors: Mapping[str, TensorInfo]) -> bool:
    first, last = tensors.get("layer_1.weight"), tensors.get("layer_6.bias")
    if first is None or last is None or len(first.shape) != 2 or len(last.shape) != 1:
        return False
    return _are(tensors, PYTORCH, *first.shape[::-1], *last.shape)


def _are(
    tensors: Mapping[str, TensorInfo], network: Mapping[str, Sequence[str]], inputs: int, hidden: int, outputs: int
) -> bool:
    """Return whether ``tensors`` has all tensors of the ``network``, with the shapes for these sizes of its layers."""
    sizes = {"inputs": inputs, "hidden": hidden, "outputs": outputs, "2 hidden": 2 * hidden, "4 hidden": 4 * hidden}
    shapes = {key: tuple(sizes[size] for size in shape) for key, shape in network.items()}
    return all(key in tensors and tensors[key].shape == shape for key, shape in shapes.items())


COQUI = (
    Conversion(
        name="coqui-stt",
        description="Coqui STT's layout in TensorFlow, converted to PyTorch's",
        converts=_is_tensorflow,
        gives=tuple(PYTORCH),
        rows=(
            {"copy": "layer_{n}.weights", "into": ["layer_{n}.weight"]},
            {"transpose": "layer_{1,2,3,5,6}.weight"},
            {"split": f"{CELL}.kernel", "into": ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]},
            {"transpose": "lstm.weight_*_l0"},
            {"copy": f"{CELL}.bias", "into": ["lstm.bias_ih_l0", "lstm.bias_hh_l0"]},
            {"scale": "lstm.bias_hh_l0", "by": 0},
            {"split": "lstm.*", "into": _TENSORFLOW_GATES},
            {"concat": _PYTORCH_GATES, "into": "lstm.*"},
        ),
    ),
    Conversion(
        name="coqui-stt-tensorflow",
        description="Coqui STT's network in PyTorch's layout, converted to TensorFlow's",
        converts=_is_pytorch,
        gives=tuple(TENSORFLOW),
        rows=(
            {"add": ["lstm.bias_ih_l0", "lstm.bias_hh_l0"], "into": "lstm.bias"},
            {"split": "lstm.*", "into": _PYTORCH_GATES},
            {"concat": _TENSORFLOW_GATES, "into": "lstm.*"},
            {"transpose": "lstm.weight_*_l0"},
            {"concat": ["lstm.weight_ih_l0", "lstm.weight_hh_l0"], "into": f"{CELL}.kernel"},
            {"copy": "lstm.bias", "into": [f"{CELL}.bias"]},
            {"copy": "layer_{n}.weight", "into": ["layer_{n}.weights"]},
            {"transpose": "layer_{1,2,3,5,6}.weights"},
        ),
    ),
)


CONVERSIONS: Mapping[str, Conversion] = {one.name: one for one in COQUI}
