"""Merge methods: how several tensors of one name become one. One file per family, pure functions.

A file offers its methods as ``METHODS``; its functions, their signatures and their papers are all there is to a method.
"""

from ._listing import MergeMethods
from ._method import Merging, Method, Slice, Tensors, merge_method
from ._parameters import Between, Parameter, PerModel
from ._plugin import load_plugin
from ._registry import merge_methods

__all__ = [
    "Between",
    "MergeMethods",
    "Merging",
    "Method",
    "Parameter",
    "PerModel",
    "Slice",
    "Tensors",
    "load_plugin",
    "merge_method",
    "merge_methods",
]
