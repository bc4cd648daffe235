"""Reads AutoRound's lists of the modules that are quantised, and of those that stay plain.

AutoRound quantises the linear layers whose names begin with one of ``block_name_to_quantize``. Entries of
``extra_config`` are names of layers, or else regular expressions that are searched in these names; with 16 ``bits``, a
layer stays plain. https://github.com/intel/auto-round/blob/main/auto_round/inference/convert_model.py
(``get_layer_config``).
"""

from __future__ import annotations

import re
from itertools import islice

from .expressions import MOST, expression_of, is_valid
from .packings import AUTOROUND_NAMES
from .settings import QuantisationSettings, Settings, strings_in

__all__ = ["AUTOROUND", "AUTOROUND_NAMES", "PLAIN_BITS", "blocks_of", "is_autoround", "plain_expressions"]

AUTOROUND = "auto-round"
PLAIN_BITS = 16
"""If a section states at least this number of bits, the weights of its modules are not quantised."""
_BLOCKS = ("block_name_to_quantize", "to_quant_block_names")


def is_autoround(settings: Settings) -> bool:
    """Return whether AutoRound's own loader reads the settings."""
    return QuantisationSettings(settings).method in AUTOROUND_NAMES


def blocks_of(settings: Settings) -> tuple[str, ...] | None:
    """Return the beginnings of the names of quantised modules; () if all are quantised, None if this is not known."""
    given = next((settings[name] for name in _BLOCKS if settings.get(name)), None)
    if settings.get("quant_block_list") or not isinstance(given, (str, list, type(None))):
        return None
    names = given.split(",") if isinstance(given, str) else []
    for one in given if isinstance(given, list) else ():
        names += strings_in(one) if isinstance(one, list) else strings_in([one])
    found = tuple(filter(None, (name.strip() for name in names)))
    return found if found or given is None else None


def plain_expressions(settings: Settings) -> tuple[list[re.Pattern[str]], bool]:
    """Return (expressions that leave modules plain, whether there are further expressions that are not evaluated).

    An expression matches a module if it is found anywhere in the module's name. Expressions that could take long are
    not evaluated, nor those after the first ``MOST``.
    """
    if not is_autoround(settings):
        return [], False
    extra = settings.get("extra_config")
    sections = extra.items() if isinstance(extra, dict) else ()
    given = [entry for entry, one in sections if isinstance(one, dict) and _is_plain(one.get("bits"))]
    given += strings_in(settings.get("modules_to_not_convert"))
    found = {entry: expression_of(_searched(entry)) for entry in islice(given, MOST)}
    left = [entry for entry, pattern in found.items() if pattern is None]
    return [one for one in found.values() if one is not None], len(given) > MOST or any(map(is_valid, left))


def _is_plain(bits: object) -> bool:
    return isinstance(bits, int) and bits >= PLAIN_BITS


def _searched(entry: str) -> str:
    """Return ``entry``, with ``.*`` in front unless it has ``^``, so that ``match`` finds it anywhere in a name."""
    return entry if entry.startswith(("^", ".*")) else f".*{entry}"
