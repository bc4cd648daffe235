"""Opens the tokeniser, feature extractor or image processor in the folder of a model."""

from __future__ import annotations

from typing import Any

from ....errors import ConfigError
from ....util.text import escape

__all__ = ["open_processor"]


def open_processor(folder: str, kind: str) -> Any:
    """Return the processor in a folder; no code from the folder runs, and nothing is downloaded.

    ``kind`` is AutoTokenizer, AutoFeatureExtractor or AutoImageProcessor. Raises ConfigError if there is none, or if it
    cannot be opened.
    """
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        first = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"{kind} cannot prepare these inputs with the files in {escape(folder)}: {escape(first, 300)}",
            hint="Give the arguments of the model's forward as tensors: --inputs FILE.safetensors.",
        ) from error
