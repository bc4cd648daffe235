"""ESPnet 2 with a self-supervised network of s3prl as its front end: the names until 202207, and those since 202209.

ESPnet has loaded the network through ``S3PRLUpstream`` since then, so that its module is one level deeper.
https://github.com/espnet/espnet/blob/v.202207/espnet2/asr/frontend/s3prl.py,
https://github.com/espnet/espnet/blob/v.202209/espnet2/asr/frontend/s3prl.py
"""

from __future__ import annotations

from ..layout import Family, Layout, Tensors

__all__ = ["FAMILY"]

_NOW, _BEFORE = "frontend.upstream.upstream", "frontend.upstream"
_WEIGHTS = "frontend.featurizer.weights"
_MODULES = ("normalize", "preencoder", "encoder", "postencoder", "decoder", "ctc", "joint_network")
_SAME = {one: one for one in (_WEIGHTS, *_MODULES)}


def _is_present(tensors: Tensors) -> bool:
    """Return whether the front end's keys have the names that ESPnet has used since version 202209."""
    return any(key.startswith(f"{_NOW}.") for key in tensors)


def _is_earlier(tensors: Tensors) -> bool:
    """Return whether the front end's keys have the names that ESPnet used until version 202207."""
    return any(key.startswith(f"{_BEFORE}.") for key in tensors) and not _is_present(tensors)


FAMILY = Family(
    "espnet-s3prl",
    (
        Layout(
            "espnet", "ESPnet", "espnet 202511, s3prl 0.4.18", {_NOW: _NOW, **_SAME}, (_WEIGHTS,), fits=_is_present
        ),
        Layout(
            "espnet-202207", "ESPnet until 202207", "espnet 202511, s3prl 0.4.18", {_NOW: _BEFORE, **_SAME},
            (_WEIGHTS,),
            fits=_is_earlier,
        ),
    ),
)  # fmt: skip
