"""Planners: headers and rules become a plan. They open nothing, log nothing and read no tensor."""

from .average import ema_weights, plan_average
from .edit import plan_edit
from .extract import Extraction, check_extraction, comparable, plan_lora_extract
from .lora import AdapterView, plan_lora_merge
from .options import Flag, Options
from .select import Origin, Planning, Selection, SourceView, moved
from .transplant import plan_transplant
from .vocabulary import VocabularyOptions

__all__ = [
    "AdapterView",
    "Extraction",
    "Flag",
    "Options",
    "Origin",
    "Planning",
    "Selection",
    "SourceView",
    "VocabularyOptions",
    "check_extraction",
    "comparable",
    "ema_weights",
    "moved",
    "plan_average",
    "plan_edit",
    "plan_lora_extract",
    "plan_lora_merge",
    "plan_transplant",
]
