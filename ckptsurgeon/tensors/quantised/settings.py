"""Reads the values that describe codes from a ``quantization_config``, which is untrusted and may have any content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from .packings import format_of_packing, packing_of

__all__ = [
    "BLOCK_SETTINGS",
    "Block",
    "QuantisationSettings",
    "Scheme",
    "Settings",
    "StatedValues",
    "basis_of",
    "gptq_format",
    "modelopt_of",
    "quantisation_of",
    "stated_by",
    "strings_in",
    "values_called",
]

Settings: TypeAlias = Mapping[str, Any]
"""The ``quantization_config`` of a folder: untrusted data, in which any field may be missing or of any type."""

BLOCK_SETTINGS = ("weight_block_size", "block_structure")
"""Settings that contain the rows and columns of a block of codes that share a scale."""

_PARTS = ("text_config", "llm_config", "language_config")
_NAMES = ("quantization_config", "compression_config", "quantization")
_METHODS = ("quant_method", "quant_algo", "mode")
_DEEPEST = 6
"""How many levels of nested JSON objects and lists are searched for a field."""


def quantisation_of(config: Any) -> Settings:
    """Return the settings of quantisation in a config.json: its ``quantization_config``, or MLX's ``quantization``."""
    top = _map(config)
    places = (_map(one.get(name)) for one in (top, *(_map(top.get(part)) for part in _PARTS)) for name in _NAMES)
    return next((found for found in places if found), {})


def strings_in(value: object) -> list[str]:
    """Return the strings in a value of the settings that should be a list of strings; empty ones are left out."""
    return [one for one in value if isinstance(one, str) and one] if isinstance(value, list) else []


class QuantisationSettings:
    """The quantisation settings of a folder, looked up by name; results are cached, as many tensors need the same."""

    def __init__(self, settings: Settings, general: QuantisationSettings | None = None) -> None:
        self._settings, self._general = settings, general
        self._numbers: dict[tuple[str, int], tuple[int, ...]] = {}
        self._sections: dict[str, tuple[QuantisationSettings, ...]] = {}
        self._texts: dict[str, tuple[str, ...]] = {}
        self._pairs: dict[str, tuple[tuple[int, int], ...]] = {}

    def __bool__(self) -> bool:
        return bool(self._settings)

    @property
    def method(self) -> str:
        """The name of the method, "" if it is missing."""
        return next((self._settings[name] for name in _METHODS if isinstance(self._settings.get(name), str)), "")

    def numbers(self, name: str, *, most: int) -> tuple[int, ...]:
        """Return the different integers from 1 to ``most`` in fields called ``name`` at any depth, the outermost first.

        If the settings of a module contain no such field, the numbers in the general settings are returned.
        """
        asked = name, most
        if asked not in self._numbers:
            values = (
                value for value in values_called(self._settings, name) if type(value) is int and 0 < value <= most
            )
            own = tuple(dict.fromkeys(values))
            self._numbers[asked] = own or (self._general.numbers(name, most=most) if self._general else ())
        return self._numbers[asked]

    def number(self, name: str, *, most: int) -> int:
        """Return the first number that ``numbers`` returns; 0 if there is none."""
        return next(iter(self.numbers(name, most=most)), 0)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return the different strings in fields called ``name`` at any depth, the outermost first.

        If the settings of a module contain no such field, the strings in the general settings are returned.
        """
        if name not in self._texts:
            values = (value for value in values_called(self._settings, name) if isinstance(value, str))
            own = tuple(dict.fromkeys(values))
            self._texts[name] = own or (self._general.texts(name) if self._general else ())
        return self._texts[name]

    def pairs(self, name: str) -> tuple[tuple[int, int], ...]:
        """Return the pairs of positive integers (block sizes) in fields called ``name`` at any depth."""
        if name not in self._pairs:
            lists = (value for value in values_called(self._settings, name) if isinstance(value, list))
            sound = (one for one in lists if len(one) == 2 and all(type(size) is int and size > 0 for size in one))
            self._pairs[name] = tuple((rows, columns) for rows, columns in sound)
        return self._pairs[name]

    def sections(self, name: str) -> tuple[QuantisationSettings, ...]:
        """Return the JSON objects in fields called ``name`` at any depth, such as ``weights`` in compressed-tensors."""
        if name not in self._sections:
            found = (value for value in values_called(self._settings, name) if isinstance(value, dict))
            self._sections[name] = tuple(map(QuantisationSettings, found))
        return self._sections[name]

    def of(self, module: str) -> QuantisationSettings:
        """Return the section that has the name ``module``, as in MLX's settings, if there is one; else all settings."""
        own = self._settings.get(module)
        return QuantisationSettings(own, self) if isinstance(own, dict) else self


def values_called(settings: Settings, name: str) -> Iterator[Any]:
    """Yield the value of every field called ``name`` at any depth, the outermost first."""
    level: list[Any] = [settings]
    for _ in range(_DEEPEST):
        yield from (one[name] for one in level if isinstance(one, dict) and name in one)
        level = [value for one in level for value in (one.values() if isinstance(one, dict) else one)]
        level = [value for value in level if isinstance(value, (dict, list))]


def modelopt_of(settings: Settings) -> Settings:
    """Return the fields of ModelOpt's settings, in config.json or in hf_quant_config.json; {} for other methods.

    In hf_quant_config.json the fields are in a section ``quantization``, next to the name of the producer.
    """
    own, producer = _map(settings.get("quantization")), _map(settings.get("producer"))
    is_modelopt = str(settings.get("quant_method", "")).startswith("modelopt") or producer.get("name") == "modelopt"
    if not is_modelopt and not ("quant_algo" in own and "quant_method" not in settings):
        return {}
    return {**own, **{name: value for name, value in settings.items() if name != "quantization"}}


def _map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


# The values in the settings that describe codes, parsed once for all tensors.

Block: TypeAlias = tuple[str, tuple[int, int]]
"""(name of the field with the block size, (rows, columns) of a block)."""

_BITS, _SIZES = ("bits", "w_bit"), ("group_size", "q_group_size")
_LARGEST = 1 << 31
_MOST = 64
"""A field with more different values than this is ignored: it says nothing about any single tensor."""
_LONGEST = 40
"""Strings in the settings are cut to this many characters."""


@dataclass(frozen=True)
class Scheme:
    """The settings of the weights in one config group of compressed-tensors.

    If the group does not state a number or a string, the field is 0 or "". If it does not state ``symmetric``, that
    field is None. ``format`` may also come from the general settings, but only if there is just one config group.
    """

    bits: int
    size: int
    type: str
    strategy: str
    actorder: str
    symmetric: bool | None
    format: str


@dataclass(frozen=True)
class StatedValues:
    """The values in a ``quantization_config``; a tuple contains a field's different values, the outermost first.

    ``sizes`` are group sizes, ``blocks`` block sizes, ``schemes`` the settings of the weights in compressed-tensors'
    config groups. ``format`` is the format of GPTQ, ``version`` the version of AWQ. ``flags``, ``texts`` and ``nulls``
    are the top-level fields that are booleans, strings and null. ``packing`` is AutoRound's ``packing_format``.
    """

    method: str
    bits: tuple[int, ...]
    sizes: tuple[int, ...]
    blocks: tuple[Block, ...]
    schemes: tuple[Scheme, ...]
    symmetric: tuple[bool, ...]
    modes: tuple[str, ...]
    format: str
    version: str
    flags: dict[str, bool]
    texts: dict[str, str]
    nulls: frozenset[str]
    packing: str | None


def stated_by(settings: Settings) -> StatedValues:
    """Return the method, bits, group sizes, blocks and formats in a ``quantization_config``, from any depth."""
    schemes = [one for one in values_called(settings, "weights") if isinstance(one, dict)]
    return StatedValues(
        QuantisationSettings(settings).method[:_LONGEST],
        _numbers(settings, _BITS),
        tuple(one for one in _numbers(settings, _SIZES) if one > 0 or one == -1),
        tuple(_few(_blocks(settings))),
        tuple(_few(_schemes(settings))),
        tuple(_few(one["symmetric"] for one in schemes if isinstance(one.get("symmetric"), bool))),
        tuple(_few(one[:_LONGEST] for one in values_called(settings, "mode") if isinstance(one, str))),
        gptq_format(settings),
        _text(settings, "version", "format"),
        {name: value for name, value in settings.items() if isinstance(value, bool)},
        {name: value[:_LONGEST].lower() for name, value in settings.items() if isinstance(value, str)},
        frozenset(name for name, value in settings.items() if value is None),
        packing_of(settings),
    )


def gptq_format(settings: Settings) -> str:
    """Return the format of GPTQ, which says how zero points are stored; "" if the settings do not state it."""
    return _text(settings, "checkpoint_format", "format") or format_of_packing(settings)


def _schemes(settings: Settings) -> Iterator[Scheme]:
    """Yield the settings of the weights in each config group, with the format of the group."""
    groups = [one for found in values_called(settings, "config_groups") for one in _map(found).values()]
    groups = [one for one in groups if isinstance(one, dict) and isinstance(one.get("weights"), dict)]
    groups = groups or [{"weights": one} for one in values_called(settings, "weights") if isinstance(one, dict)]
    for group in groups:
        one = group["weights"]
        symmetric = one.get("symmetric")
        yield Scheme(
            _positive(one.get("num_bits")),
            _positive(one.get("group_size")),
            _text(one, "type"),
            _text(one, "strategy"),
            _text(one, "actorder"),
            symmetric if isinstance(symmetric, bool) else None,
            _text(group, "format") or (_text(settings, "format") if len(groups) == 1 else ""),
        )


def _few(values: Iterator[Any]) -> Sequence[Any]:
    """Return the different values in order; an empty list if there are more than ``_MOST`` of them."""
    found = dict.fromkeys(values)
    return list(found) if len(found) <= _MOST else []


def _numbers(settings: Settings, names: Sequence[str]) -> tuple[int, ...]:
    values = (value for name in names for value in values_called(settings, name))
    return tuple(_few(value for value in values if type(value) is int and abs(value) < _LARGEST))


def _positive(value: object) -> int:
    return value if type(value) is int and 0 < value < _LARGEST else 0


def _blocks(settings: Settings) -> Iterator[Block]:
    for name in ("weight_block_size", "block_structure"):
        for value in values_called(settings, name):
            if isinstance(value, list) and len(value) == 2 and all(map(_positive, value)):
                yield name, (value[0], value[1])


def _text(settings: Settings, *names: str) -> str:
    """Return the value, in lower case, of the first field in ``names`` whose value is a string; "" if there is none."""
    return next((value[:_LONGEST].lower() for name in names if isinstance(value := settings.get(name), str)), "")


def basis_of(settings: Settings) -> str:
    """Return the names and types of the transforms that were applied to the stored weights; "" if there are none.

    compressed-tensors lists them in ``transform_config``, for example R1 and R2 of SpinQuant.
    """
    transforms = settings.get("transform_config")
    groups = transforms.get("config_groups") if isinstance(transforms, dict) else None
    if not transforms or groups == {}:
        return ""
    pairs = groups.items() if isinstance(groups, dict) else ()
    names = [f"{name} {one.get('type') or ''}".strip() for name, one in pairs if isinstance(one, dict)]
    return ", ".join(names) or "unknown"
