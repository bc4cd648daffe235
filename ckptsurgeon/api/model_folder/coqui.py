"""Notes on an alphabet of Coqui STT that does not fit its network, and on outputs in TensorFlow's format for Coqui."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from ...destinations.hf.files import ALPHABET, FLAGS
from ...errors import CheckpointError
from ...formats.tf.coqui import is_network
from ...planning.operations.conversions import CONVERSIONS
from ...planning.plan.plan import Plan
from ...planning.target import Companion
from ...tensors.info import TensorInfo
from ...util.note_kind import NoteKind
from ...util.notes import notes_of
from ...util.text import count
from .folder import ModelFolder
from .weights.shape_checks import DescribedTensor

__all__ = ["alphabet_notes", "tensorflow_notes"]

_OUTPUT = "layer_6.bias"
_RULESET = "coqui-stt-tensorflow"
_BYTES = "bytes_output_mode"


@notes_of(NoteKind.OTHER)
def alphabet_notes(tensors: Sequence[DescribedTensor], folder: ModelFolder, read: ModelFolder) -> Iterator[str]:
    """Yield a note if the number of labels in a folder's alphabet does not fit the output layer of the network.

    ``read`` is the same folder, or another folder with the same alphabet, whose alphabet may be loaded already.
    """
    rows = next((one.shape[0] for one in tensors if one.key == _OUTPUT and len(one.shape) == 1), 0)
    if not rows or folder.vocabulary != ALPHABET or _is_of_bytes(folder):
        return
    if read.tokens is not None and len(read.tokens) != rows:
        labels = count(len(read.tokens) - 1, "label")
        yield f"{ALPHABET} has {labels}, to which CTC adds a blank, but {_OUTPUT} has {rows} values"


def _is_of_bytes(folder: ModelFolder) -> bool:
    """Return whether the flags file in the folder says that the network outputs bytes, and so has no alphabet."""
    with suppress(CheckpointError, ValueError):
        return any(one.name == FLAGS for one in folder.files) and folder.document(FLAGS).get(_BYTES) is True
    return False


def tensorflow_notes(plan: Plan) -> Iterator[str]:
    """Yield notes on a plan whose output is in TensorFlow's format, if Coqui STT needs more than its tensors."""
    tensors = {step.key: TensorInfo(step.dtype, step.shape) for step in plan.steps}
    if is_network(tensors):
        yield "the output also gets the state of an Adam optimizer before its first step, which Coqui STT expects"
        files = tuple(Companion(one.name, one.path, one.text) for one in plan.target.companions)
        if all(one.name != ALPHABET for one in files) and not _is_of_bytes(ModelFolder("", files)):
            yield f"the output's folder has no {ALPHABET}: Coqui STT needs such a file for --alphabet_config_path"
    elif CONVERSIONS[_RULESET].converts(tensors):
        yield f"Coqui STT cannot read PyTorch's layout: convert the output with ckpt rename --ruleset {_RULESET}"
