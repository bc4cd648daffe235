"""Errors for outputs whose format is unknown or does not fit the tensors; their hints name formats to use instead."""

from __future__ import annotations

import os
from collections.abc import Callable

from ...errors import ConfigError, OutputError
from ...formats.base.format_table import Writers, writers
from ...formats.base.header import Writer
from ...planning.operations.operation import QUANTISED_NOW
from ...planning.plan.step import Step
from ...tensors.dtypes import DTYPES
from ...util.text import count, escape
from .option_names import Spelling

__all__ = ["too_many", "unfit_dtype", "unknown_suffix", "unknown_to"]

USUAL = ("safetensors", "pth")
"""The formats that hints name first."""

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


def unknown_to(to: str, known: Writers, spelling: Spelling) -> ConfigError:
    """Return the error for a value of ``--to`` that is not a format that can be written."""
    return ConfigError(
        f"{spelling.given('--to', escape(to))} is unknown.",
        hint=f"{_instead(to.lower())} Use one of {', '.join(known)}.".lstrip(),
    )


def _instead(word: str) -> str:
    """Return advice if ``word`` names a layout, or a format that ckpt can only read; '' otherwise.

    For a layout, the advice is to give ``--layout``.
    """
    from ...planning.layouts.recognise import layout_names

    if word in _ONLY_READ:
        return _ONLY_READ[word]
    return f"{word} is a layout, so give --layout {word}." if word in layout_names() else ""


def unfit_dtype(step: Step, writer: Writer) -> OutputError:
    """Return the error for a tensor whose dtype a format does not support."""
    others = _names_of_writers(lambda other: step.dtype in other.dtypes)
    leave = f"Leave the tensor out first: ckpt filter --exclude {escape(step.key)}."
    is_made = step.operation.startswith(QUANTISED_NOW)
    other = " Or leave --gguf-type out." if is_made else " Or decode it: ckpt convert --dequantize."
    decode = other if DTYPES[step.dtype].kind == "quantized" else ""
    return OutputError(
        f"{writer.name} does not support {step.dtype}, the dtype of {escape(step.key)}.",
        hint=f"Use --to {others[0]}.{decode}" if others else leave,
    )


def too_many(tensors: int, writer: Writer) -> OutputError:
    """Return the error for a number of tensors that ckptsurgeon could not read back from the format."""
    others = _names_of_writers(lambda other: other.most >= tensors)
    return OutputError(
        f"{count(tensors, 'tensor')} are too many for the format {writer.name}: "
        f"ckptsurgeon reads at most {writer.most}.",
        hint=f"Use --to {others[0]}." if others else "Write several smaller outputs, with ckpt filter.",
    )


def _names_of_writers(fits: Callable[[Writer], bool]) -> list[str]:
    """Return the names of the formats for whose writer the function ``fits`` returns true.

    The formats in ``USUAL`` come first, the formats whose outputs are always folders last.
    """
    found = [
        writer.name for writer in sorted(writers().values(), key=lambda writer: not writer.suffixes) if fits(writer)
    ]
    return [name for name in USUAL if name in found] + [name for name in found if name not in USUAL]
