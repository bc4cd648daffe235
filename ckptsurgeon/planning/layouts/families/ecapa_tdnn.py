"""SpeechBrain's ECAPA-TDNN for speakers and languages. In PaddleSpeech, running statistics have other names.

3D-Speaker and ModelScope have the same network with SpeechBrain's names. The networks of that name in NeMo, WeSpeaker
and ESPnet compute something else: their pooling, aggregation or squeeze-and-excitation have other layers.
https://github.com/speechbrain/speechbrain/blob/develop/speechbrain/lobes/models/ECAPA_TDNN.py,
https://github.com/PaddlePaddle/PaddleSpeech/blob/develop/paddlespeech/vector/models/ecapa_tdnn.py,
https://github.com/modelscope/3D-Speaker/blob/main/speakerlab/models/ecapa_tdnn/ECAPA_TDNN.py
"""

from __future__ import annotations

from collections.abc import Iterable

from ..layout import Family, Layout

__all__ = ["FAMILY"]

_BLOCK = "blocks.{n}"
_FIRST = {"conv.conv": "norm.norm"}
_LATER = {f"{name}.conv.conv": f"{name}.norm.norm" for name in ("tdnn1", "res2net_block.blocks.{m}", "tdnn2")}
_SQUEEZE = ("se_block.conv1.conv", "se_block.conv2.conv")
_SHORTCUT = "shortcut.conv"
_AFTER = {"mfa.conv.conv": "mfa.norm.norm", "asp.tdnn.conv.conv": "asp.tdnn.norm.norm"}
_LEAVES = {"weight": "weight", "bias": "bias", "running_mean": "_mean", "running_var": "_variance"}
"""{torch's name of a tensor in a batch norm: PaddlePaddle's name}."""


def _with_norm_tensors(convolutions: Iterable[str], norms: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the convolutions, then the names of the four tensors of each norm, as one tuple."""
    return (*convolutions, *(f"{norm}.{leaf}" for norm in norms for leaf in _LEAVES))


_FIRST_BLOCK = tuple(f"{_BLOCK}.{name}" for name in _with_norm_tensors(_FIRST, _FIRST.values()))
_LATER_BLOCKS = tuple(f"{_BLOCK}.{name}" for name in _with_norm_tensors((*_LATER, *_SQUEEZE), _LATER.values()))
_NAMES = (
    *_FIRST_BLOCK,
    *_LATER_BLOCKS,
    f"{_BLOCK}.{_SHORTCUT}",
    *_with_norm_tensors((*_AFTER, "asp.conv.conv", "fc.conv"), (*_AFTER.values(), "asp_bn.norm")),
)
_MARKS = ("blocks.0.conv.conv.weight", "asp.tdnn.conv.conv.weight", "mfa.norm.norm.running_mean")
_CLASSIFIER = "the classifier of training, which SpeechBrain stores in a file of its own"


def _in_paddle(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{module}.{_LEAVES[leaf]}" if leaf in _LEAVES else name


def _paddlespeech(before: str, *, only_read: bool = False) -> Layout:
    """Return PaddleSpeech's layout, with the prefix ``before``."""
    return Layout(
        "paddlespeech", "PaddleSpeech", "paddlespeech 1.5.0", {ours: before + _in_paddle(ours) for ours in _NAMES},
        tuple(before + _in_paddle(mark) for mark in _MARKS),
        aside={"weight": _CLASSIFIER} if before else {}, only_read=only_read,
        written="PaddleSpeech's own files also have the classifier of training (weight), but load without it",
    )  # fmt: skip


FAMILY = Family(
    "ecapa-tdnn",
    (
        Layout(
            "speechbrain", "SpeechBrain, 3D-Speaker, ModelScope", "speechbrain 1.1.2", {one: one for one in _NAMES},
            _MARKS,
            training=("**.num_batches_tracked",),
        ),
        _paddlespeech("backbone."),
        _paddlespeech("", only_read=True),
    ),
    some=(_FIRST_BLOCK, _LATER_BLOCKS, (f"{_BLOCK}.{_SHORTCUT}",)),
)  # fmt: skip
