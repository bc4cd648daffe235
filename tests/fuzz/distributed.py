"""Folders of torch.distributed.checkpoint: metadata and data in turn."""

import warnings

import torch

from ..formats.test_torch_dcp import save
from .target import Files, Target, files_of, in_parts, numbered


def make() -> Files:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({"model": {"w": torch.ones(2), "v": torch.ones(3, 2)}, "epoch": 7}, "distributed")
    return files_of("distributed")


TARGET = Target(in_parts("distributed"), make, numbered)
