"""Errors for outputs of a format that ckpt does not write; they say what the name means, and what to write instead."""

from __future__ import annotations

import os

from ...errors import ConfigError
from ...formats.base.marks import Writers
from ...util.text import escape

__all__ = ["unknown_suffix", "unknown_to"]

_ONLY_READ = {
    "nemo": "A .nemo is a tar archive: write model_weights.ckpt, and pack it with the other files of the original: "
    "tar cf NAME.nemo model_config.yaml model_weights.ckpt.",
    "onnx": "ckpt reads the weights of ONNX models, but writes no operators: export the model with torch.onnx.",
    "pt2": "ckpt reads the weights of torch.export's programs, but writes no programs: write .pth, load it into the "
    "model, and export that.",
    "keras": "ckpt reads Keras models, but does not write them: write .h5, whose datasets have the keys as paths.",
    "pdparams": "ckpt reads PaddlePaddle's files, but does not write them: write .npz or .safetensors.",
    "pkl": "ckpt reads pickles of numpy's arrays, but does not write them: write .npz.",
    "npy": "A .npy is one array: write .npz.",
    "orbax": "ckpt reads folders of Orbax, but does not write them: write .msgpack, which Flax reads.",
    "tar": "Write a folder of safetensors, -o folder/, and pack it with tar.",
    "zip": "Write a folder of safetensors, -o folder/, and pack it with zip.",
    "ctranslate2": "ckpt reads CTranslate2's model.bin, but does not write it: write a folder of transformers, and "
    "convert it with ct2-transformers-converter.",
}
"""{suffix without its dot, or format as users may call it: advice for the user}"""


def unknown_suffix(path: str, known: Writers) -> ConfigError:
    """Return the error for an output file whose suffix does not belong to a format that can be written."""
    suffixes = [one for each in known.suffixes.values() for one in each]
    stem, suffix = os.path.splitext(path)
    word = suffix.lower().removeprefix(".")
    hint = f"{_instead(word)} Use {', '.join(suffixes)}, or give the format with --to.".lstrip()
    if word in known:
        usual = next(iter(known.suffixes[word]), "")
        hint = (
            f"The usual suffix of the format {word} is {usual}: -o {escape(stem)}{usual}."
            if usual
            else f"The format {word} is a folder: --to {word} -o {escape(stem)}/."
        )
    return ConfigError(f"the suffix of {escape(path)} does not belong to a known format.", hint=hint)


def unknown_to(to: str, known: Writers) -> ConfigError:
    """Return the error for a value of ``--to`` that is not a format that can be written."""
    return ConfigError(
        f"--to {escape(to)} is unknown.", hint=f"{_instead(to.lower())} Use one of {', '.join(known)}.".lstrip()
    )


def _instead(word: str) -> str:
    """Return advice if ``word`` names a layout, or a format that ckpt can only read; '' otherwise.

    For a layout, the advice is to give ``--layout``.
    """
    from ...planning.layouts.recognise import layout_names

    if word in _ONLY_READ:
        return _ONLY_READ[word]
    return f"{word} is a layout, so give --layout {word}." if word in layout_names() else ""
