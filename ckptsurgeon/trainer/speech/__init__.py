"""Transcribed speech out of a synthesiser, made from a seed: what the demo and the tests train on."""

from .demo import Demo, demo_data
from .words import LANGUAGES

__all__ = ["LANGUAGES", "Demo", "demo_data"]
