"""Files from before torch 1.6."""

from tests.fuzz.target import fuzz, opened

# isort: split
# what is imported before atheris is not instrumented
from tests.formats.torch_files import legacy_variety, saved

if __name__ == "__main__":
    fuzz(opened("x.pt"), [saved(legacy_variety(), _use_new_zipfile_serialization=False)])
