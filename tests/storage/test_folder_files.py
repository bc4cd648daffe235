"""The files of a folder with some suffixes: no folder, no hidden file, and in natural order."""

from __future__ import annotations

import os
from pathlib import Path

from ckptsurgeon.storage.folder_files import files_with


def test_files_have_a_suffix_of_either_case_and_are_in_natural_order() -> None:
    os.makedirs("speech/3.wav/4.wav")
    for name in ("10.WAV", "2.wav", "1.ogg", ".2.wav", "notes.txt", "3.wav/5.wav"):
        Path("speech", name).touch()
    Path("speech/6.wav").symlink_to("2.wav")
    Path("speech/7.wav").symlink_to("3.wav")
    assert files_with([".wav"], "speech") == (["speech/2.wav", "speech/6.wav", "speech/10.WAV"], 2)
    assert files_with([".wav"], "speech/3.wav/4.wav") == ([], 0)
