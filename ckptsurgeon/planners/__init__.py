"""Planners: headers and rules become a plan. They open nothing, log nothing and read no tensor."""

from .average import ema_weights, plan_average
from .edit import plan_edit
from .options import Options
from .select import SourceView
from .transplant import plan_transplant

__all__ = ["Options", "SourceView", "ema_weights", "plan_average", "plan_edit", "plan_transplant"]
