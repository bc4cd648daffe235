"""Defines the variables of Coqui STT's network, and the training state that its code also expects.

Coqui's loader (``coqui_stt_training/util/checkpoints.py``) requires every variable of its graph: for evaluation also
``global_step``, for training also the moments and powers of its Adam optimizer. Only ``learning_rate`` may be missing.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Sequence

from ..base.header import OutTensor

__all__ = ["CELL", "MOMENTS", "fresh_state", "is_network"]

CELL = "cudnn_lstm.rnn.multi_rnn_cell.cell_0.cudnn_compatible_lstm_cell"
MOMENTS = ("Adam", "Adam_1")
"""The suffixes under which TensorFlow 1 stores the first and second moment of a variable."""
_LAYERS = ("layer_1", "layer_2", "layer_3", "layer_5", "layer_6")
_NETWORK = frozenset(
    (f"{CELL}.kernel", f"{CELL}.bias", *(f"{layer}.{part}" for layer in _LAYERS for part in ("weights", "bias")))
)
_SCALARS = (("global_step", "int64", struct.pack("<q", 0)), ("beta1_power", "float32", struct.pack("<f", 0.9)),
            ("beta2_power", "float32", struct.pack("<f", 0.999)))  # fmt: skip
"""(name, dtype, bytes) of each scalar that Coqui saves; the bytes are the value before the first step of Adam.

The powers are the defaults of Coqui's options ``--beta1`` and ``--beta2``.
"""


def is_network(keys: Collection[str]) -> bool:
    """Return whether the keys include all variables of Coqui's network."""
    return all(key in keys for key in _NETWORK)


def fresh_state(tensors: Sequence[OutTensor]) -> Iterator[tuple[OutTensor, bytes]]:
    """Yield (tensor, bytes) of the state of an Adam optimizer before its first step; the bytes of zeros are b"".

    Yields nothing if ``tensors`` lack a variable of Coqui's network.
    """
    if not is_network({tensor.key for tensor in tensors}):
        return
    for tensor in tensors:
        for moment in MOMENTS if tensor.key in _NETWORK else ():
            yield tensor._replace(key=f"{tensor.key}.{moment}", alias_of=""), b""
    for name, dtype, value in _SCALARS:
        yield OutTensor(name, dtype, (), len(value)), value
