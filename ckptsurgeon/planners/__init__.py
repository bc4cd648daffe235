"""Planners: headers and rules become a plan. They open nothing, log nothing and read no tensor.

Names are imported when they are used: merging and adapting need numpy, copying does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .average import ema_weights, plan_average
    from .by_place import EMBEDDING, HEAD, is_embedding, is_of_labels, is_of_tokens, vocabulary_keys
    from .coded import DEQUANTISE, check_codes, refuse_codes
    from .edit import plan_edit
    from .extract import plan_lora_extract, with_tied
    from .extract_check import check_adapter
    from .extract_options import Extraction, check_extraction
    from .extract_sorting import comparable
    from .lora import plan_lora_merge
    from .lora_fitting import AdapterView
    from .merge import pieces_of, plan_merge
    from .merge_heads import has_own_head, with_tied_heads
    from .merge_layers import Depths, LayerList, layer_list, layer_lists, layers_of, lists_with_gaps, numbered_lists
    from .merge_mismatch import MergeMismatch
    from .merge_options import MergeOptions, Piece, Place
    from .merge_slices import LayerSlice, LayerSource, sliced_pieces
    from .merge_values import Setting, Settings, Values
    from .merge_vocabulary import MergeVocabulary
    from .options import Flag, Options
    from .select import Origin, Planning, Selection, SourceView
    from .spec import moved
    from .transplant import plan_transplant
    from .vocabulary import VocabularyOptions

__all__ = [
    "DEQUANTISE",
    "EMBEDDING",
    "HEAD",
    "AdapterView",
    "Depths",
    "Extraction",
    "Flag",
    "LayerList",
    "LayerSlice",
    "LayerSource",
    "MergeMismatch",
    "MergeOptions",
    "MergeVocabulary",
    "Options",
    "Origin",
    "Piece",
    "Place",
    "Planning",
    "Selection",
    "Setting",
    "Settings",
    "SourceView",
    "Values",
    "VocabularyOptions",
    "check_adapter",
    "check_codes",
    "check_extraction",
    "comparable",
    "ema_weights",
    "has_own_head",
    "is_embedding",
    "is_of_labels",
    "is_of_tokens",
    "layer_list",
    "layer_lists",
    "layers_of",
    "lists_with_gaps",
    "moved",
    "numbered_lists",
    "pieces_of",
    "plan_average",
    "plan_edit",
    "plan_lora_extract",
    "plan_lora_merge",
    "plan_merge",
    "plan_transplant",
    "refuse_codes",
    "sliced_pieces",
    "vocabulary_keys",
    "with_tied",
    "with_tied_heads",
]

__getattr__ = lazy_names(
    __name__,
    {
        ".average": (
            "ema_weights",
            "plan_average",
        ),
        ".by_place": (
            "EMBEDDING",
            "HEAD",
            "is_embedding",
            "is_of_labels",
            "is_of_tokens",
            "vocabulary_keys",
        ),
        ".coded": (
            "DEQUANTISE",
            "check_codes",
            "refuse_codes",
        ),
        ".edit": ("plan_edit",),
        ".extract": ("plan_lora_extract", "with_tied"),
        ".extract_check": ("check_adapter",),
        ".extract_options": (
            "Extraction",
            "check_extraction",
        ),
        ".extract_sorting": ("comparable",),
        ".lora": ("plan_lora_merge",),
        ".lora_fitting": ("AdapterView",),
        ".merge": (
            "pieces_of",
            "plan_merge",
        ),
        ".merge_heads": (
            "has_own_head",
            "with_tied_heads",
        ),
        ".merge_layers": (
            "Depths",
            "LayerList",
            "layer_list",
            "layer_lists",
            "layers_of",
            "layers_of",
            "lists_with_gaps",
            "numbered_lists",
        ),
        ".merge_mismatch": ("MergeMismatch",),
        ".merge_options": (
            "MergeOptions",
            "Piece",
            "Place",
        ),
        ".merge_slices": (
            "LayerSlice",
            "LayerSource",
            "sliced_pieces",
        ),
        ".merge_values": (
            "Setting",
            "Settings",
            "Values",
        ),
        ".merge_vocabulary": ("MergeVocabulary",),
        ".options": (
            "Flag",
            "Options",
        ),
        ".select": (
            "Origin",
            "Planning",
            "Selection",
            "SourceView",
        ),
        ".spec": ("moved",),
        ".transplant": ("plan_transplant",),
        ".vocabulary": ("VocabularyOptions",),
    },
)
