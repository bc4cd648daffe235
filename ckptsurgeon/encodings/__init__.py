"""Encodings: how methods of quantisation store one logical tensor as several. Pure: keys, dtypes and shapes alone.

One file for each method, which is found by what it calls ``ENCODINGS``.
"""

from ._agreement import Decoded, contradictions, disagreements, left_out, stores_codes
from ._codes import NO_CODES, CodedTensor, Codes
from ._find import find_codes
from ._methods import is_known_by_settings, known_by_settings
from ._modules import Modules, module_of, renamed_modules
from ._partners import broken_partners
from ._settings import quantisation_of

__all__ = [
    "NO_CODES",
    "CodedTensor",
    "Codes",
    "Decoded",
    "Modules",
    "broken_partners",
    "contradictions",
    "disagreements",
    "find_codes",
    "is_known_by_settings",
    "known_by_settings",
    "left_out",
    "module_of",
    "quantisation_of",
    "renamed_modules",
    "stores_codes",
]
