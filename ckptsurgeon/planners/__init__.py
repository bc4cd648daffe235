"""Planners: headers and rules become a plan. They open nothing, log nothing and read no tensor."""

from .average import ema_weights, plan_average
from .edit import plan_edit
from .lora import AdapterView, plan_lora_merge
from .options import Flag, Options
from .select import Origin, Planning, Selection, SourceView, moved
from .transplant import plan_transplant
from .vocabulary import VocabularyOptions

__all__ = [
    "AdapterView",
    "Flag",
    "Options",
    "Origin",
    "Planning",
    "Selection",
    "SourceView",
    "VocabularyOptions",
    "ema_weights",
    "moved",
    "plan_average",
    "plan_edit",
    "plan_lora_merge",
    "plan_transplant",
]
