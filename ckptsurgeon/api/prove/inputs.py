"""The inputs on which two networks run: random inputs that fit the networks, or inputs from the user's file."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...storage.folder_files import files_with
from ...util.did_you_mean import did_you_mean
from ...util.text import count, escape, listing, shape_text
from .decoder_inputs import DECODER, with_decoder
from .espnet_inputs import espnet_inputs
from .media.image_files import SUFFIXES as OF_IMAGES
from .media.processors import open_processor
from .media.sound_inputs import SUFFIXES as OF_SOUNDS
from .media.sound_inputs import sound_inputs

__all__ = ["Inputs", "drawn_inputs", "given_inputs"]

ROWS, TOKENS, TARGETS = 4, 32, 8
"""The numbers of random inputs in a batch, of tokens in a random text, and of random tokens for a decoder."""
WAVE = 16_000
"""The number of samples of a random waveform: one second at the sample rate of most speech models."""
LONGEST = 512
"""The largest number of tokens of a text in the user's file; longer texts are cut, with a note."""
SUFFIXES = f".safetensors, .txt, {', '.join((*OF_SOUNDS, *OF_IMAGES))}, or a folder of images or sounds"
MOST = 1 << 27
"""The largest number of values in one random input; in float32, they take half a gigabyte."""


@dataclass(frozen=True)
class Inputs:
    """Inputs for a network: the arguments of ``forward`` by name, and a text that describes them (``said``).

    ``unused`` is a text on the parts of the user's file or folder that are not used; "" if all are used. ``hint`` says
    what to do if the network does not run on these inputs.
    """

    arguments: Mapping[str, Tensor]
    said: str
    hint: str = "Give inputs that fit the network: --inputs FILE.safetensors."
    unused: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """A note that describes the inputs, if parts of the user's file or folder are not used; else ()."""
        return (f"the inputs are {self.said}",) if self.unused else ()

    def token_ids(self) -> set[int]:
        """Return all token ids in the inputs."""
        found = (value for name, value in self.arguments.items() if name.endswith("input_ids"))
        return {one for value in found for one in value.flatten().tolist()}

    def arguments_for(self, module: nn.Module) -> dict[str, Any]:
        """Return the arguments for ``forward``; for a model of transformers, with ``use_cache=False``."""
        known = inspect.signature(module.forward).parameters
        return {**self.arguments, **({"use_cache": False} if "use_cache" in known else {})}


def drawn_inputs(module: nn.Module, seed: int, tokens: Sequence[int] | None = None) -> Inputs:
    """Return random inputs (token ids, waveforms, features or images) for a model of transformers or ESPnet.

    The token ids for a model of transformers are drawn from ``tokens``, by default from all ids that are not special.
    Raises ConfigError if it is not known which inputs the network needs.
    """
    config: Any = getattr(module, "config", None)
    known = inspect.signature(module.forward).parameters
    names = [name for name in DRAWN if name in known]
    main = getattr(module, "main_input_name", "")
    chance = torch.Generator().manual_seed(seed)
    speech = espnet_inputs(module, chance)
    if speech is not None:
        return Inputs(speech, _drawn_text(speech, seed))
    if config is None or main not in names:
        raise _unknown(module, known)
    chosen = [main, *(["pixel_values"] if main == "input_ids" and hasattr(module, "logit_scale") else [])]
    if getattr(config, "is_encoder_decoder", False) and DECODER in known:
        chosen.append(DECODER)
    try:
        drawn = {name: DRAWN[name](config, chance, tokens) for name in chosen}
        drawn = {name: value[: len(drawn[main])] for name, value in drawn.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise _unknown(module, known) from error
    return Inputs(drawn, _drawn_text(drawn, seed))


def _drawn_text(drawn: Mapping[str, Tensor], seed: int) -> str:
    said = ", ".join(f"{name} {shape_text(tuple(value.shape))}" for name, value in drawn.items())
    return f"{said}, drawn with seed {seed}"


def _noise(chance: torch.Generator, *shape: int) -> Tensor:
    if math.prod(shape) > MOST:
        raise ConfigError(
            f"random inputs for this network would have {math.prod(shape):,} numbers, but at most {MOST:,} are "
            "allowed.",
            hint="Give inputs: --inputs FILE.safetensors.",
        )
    return torch.randn(*shape, generator=chance)


def _unknown(module: nn.Module, known: Mapping[str, Any]) -> ConfigError:
    names = [name for name, one in known.items() if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    return ConfigError(
        f"no random inputs can be made for {type(module).__name__}: it is not known which inputs this network needs.",
        hint="Give the arguments of its forward as tensors: --inputs FILE.safetensors, with "
        f"{listing(names, 8, where='')}.",
    )


def _text(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _ids(config: Any, chance: torch.Generator, tokens: Sequence[int] | None, size: int = TOKENS) -> Tensor:
    text = _text(config)
    longest = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or size
    ids = torch.tensor(list(tokens) if tokens is not None else _plain_tokens(config, text))
    places = torch.randint(len(ids), (ROWS, max(1, min(size, int(longest) - 2))), generator=chance)
    return ids[places]


def _plain_tokens(config: Any, text: Any) -> list[int]:
    """Return the ids of all tokens except special tokens, whose ids are in the configuration (such as pad_token_id).

    ``config`` is the configuration of the model, and ``text`` the configuration of its text model.
    """
    fields = {**config.to_dict(), **text.to_dict()}
    named = [value for name, value in fields.items() if name.endswith(("_token_id", "_token_index"))]
    every = [one for value in named for one in (value if isinstance(value, list) else [value])]
    special = {one for one in every if isinstance(one, int)}
    return [number for number in range(int(text.vocab_size)) if number not in special] or [0]


def _decoder_ids(config: Any, chance: torch.Generator, tokens: Sequence[int] | None) -> Tensor:
    return _ids(config, chance, tokens, TARGETS)


def _waves(config: Any, chance: torch.Generator, tokens: Sequence[int] | None) -> Tensor:
    return _noise(chance, ROWS, WAVE)


def _features(config: Any, chance: torch.Generator, tokens: Sequence[int] | None) -> Tensor:
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
        return _noise(chance, 1, config.num_mel_bins, 2 * config.max_source_positions)
    return _noise(chance, ROWS, 64, config.feature_projection_input_dim)


def _images(config: Any, chance: torch.Generator, tokens: Sequence[int] | None) -> Tensor:
    vision = getattr(config, "vision_config", None) or getattr(config, "encoder", config)
    size = getattr(vision, "image_size", 224)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return _noise(chance, ROWS, getattr(vision, "num_channels", 3), height, width)


DRAWN: Mapping[str, Callable[[Any, torch.Generator, Sequence[int] | None], Tensor]] = {
    "input_ids": _ids, "input_values": _waves, "input_features": _features, "pixel_values": _images,
    DECODER: _decoder_ids,
}  # fmt: skip
"""{argument of ``forward``: function of (configuration, generator, tokens) that returns random values for it}"""


def given_inputs(path: str, module: nn.Module, folder: str) -> Inputs:
    """Return the inputs in a file: arguments of ``forward`` by name (safetensors), lines of text, audio or an image.

    A folder has images or sounds, which make one batch. Texts, audio and images are prepared by the tokeniser, the
    feature extractor or the image processor in the model's ``folder``. The decoder of an encoder-decoder gets its start
    token and the same text, or the start token alone for audio and images, unless ``forward`` makes its tokens. Raises
    ConfigError if the file, the tokeniser, the feature extractor or the image processor is missing, if the file has no
    inputs, or if ``forward`` lacks an argument in the file.
    """
    suffix = os.path.splitext(path)[1].lower()
    arguments, unused, of_images = _arguments(path, suffix, module, folder)
    empty = [name for name, value in arguments.items() if not value.numel()]
    if empty or not arguments:
        raise ConfigError(
            f"{escape(path)} has no inputs{f': {escape(empty[0])} has no elements' if empty else ''}.",
            hint="A text file needs a line with text, a .safetensors file the arguments of the model's forward.",
        )
    arguments, hint = (arguments, "") if suffix == ".safetensors" else with_decoder(arguments, module, folder)
    _check_known(path, arguments, module)
    shapes = ", ".join(f"{name} {shape_text(tuple(value.shape))}" for name, value in arguments.items())
    name = os.path.basename(os.path.normpath(path))
    said = f"{shapes} from {escape(name)}{f' ({unused})' if unused else ''}"
    return Inputs(arguments, said, hint or of_images or Inputs.hint, unused)


def _arguments(path: str, suffix: str, module: nn.Module, folder: str) -> tuple[dict[str, Tensor], str, str]:
    """Return the arguments in a file or folder, a text on its unused parts, and a hint if the network does not run.

    The text and the hint may be ''. Raises ConfigError if the file is missing or has an unknown suffix.
    """
    kind = _kind_of_folder(path) if os.path.isdir(path) else suffix if os.path.isfile(path) else ""
    if kind in OF_SOUNDS:
        return *sound_inputs(path, folder), ""
    if kind in OF_IMAGES:
        from .media.image_inputs import NEEDS_TEXT, image_inputs

        takes_text = "input_ids" in inspect.signature(module.forward).parameters
        return *image_inputs(path, module, folder), NEEDS_TEXT if takes_text else ""
    if not os.path.isfile(path):
        why = "is not a file" if os.path.exists(path) else "does not exist"
        raise ConfigError(f"--inputs {escape(path)} {why}.", hint=did_you_mean(path, f"Give a file: {SUFFIXES}."))
    if suffix == ".safetensors":
        return _tensors(path), "", ""
    if suffix == ".txt":
        return *_texts(path, folder), ""
    raise ConfigError(f"--inputs {escape(path)} has an unknown suffix.", hint=f"Use {SUFFIXES}.")


def _kind_of_folder(path: str) -> str:
    """Return the first of ``OF_SOUNDS`` if a folder has more sounds than images, else the first of ``OF_IMAGES``.

    Raises ConfigError if the folder has neither.
    """
    most, number = max(((kind, len(files_with(kind, path)[0])) for kind in (OF_IMAGES, OF_SOUNDS)), key=itemgetter(1))
    if number:
        return most[0]
    raise ConfigError(
        f"the folder {escape(path)} has neither images nor sounds.",
        hint=f"Give a folder with such files directly in it, not in subfolders: {', '.join((*OF_SOUNDS, *OF_IMAGES))}.",
    )


def _check_known(path: str, arguments: Mapping[str, Tensor], module: nn.Module) -> None:
    """Raise ConfigError if ``arguments`` has a name that is not an argument of ``forward``."""
    known = inspect.signature(module.forward).parameters
    takes_all = any(one.kind is one.VAR_KEYWORD for one in known.values())
    unknown = [name for name in arguments if name not in known and not takes_all]
    if unknown:
        raise ConfigError(
            f"{escape(path)} has an entry {escape(unknown[0])}, but the forward of {type(module).__name__} has no such "
            "argument.",
            hint=f"The arguments of forward are {listing(list(known), 8, where='')}.",
        )


def _tensors(path: str) -> dict[str, Tensor]:
    from ...checkpoint.opening import open_checkpoint

    with open_checkpoint(path, unwrap=False) as found:
        return {key: found.tensor(key) for key in found}


def _texts(path: str, folder: str) -> tuple[dict[str, Tensor], str]:
    """Return the arguments for the lines of a file, and a text on lines that are cut; '' if none is."""
    from ...storage.small_files import read_text

    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        return {}, ""
    tokenizer = open_processor(folder, "AutoTokenizer")
    if len(lines) > 1 and tokenizer.pad_token is None:  # any token can pad, because the attention mask excludes padding
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    made = tokenizer(lines, return_tensors="pt", padding=len(lines) > 1, truncation=True, max_length=LONGEST)
    longer = [one for one in tokenizer(lines, truncation=True, max_length=LONGEST + 1)["input_ids"] if one[LONGEST:]]
    cut = f"{count(len(longer), 'line')} {'is' if len(longer) == 1 else 'are'} cut to {LONGEST} tokens"
    return dict(made), cut if longer else ""
