"""TorchScript archives."""

from tests.fuzz.target import fuzz, opened

# isort: split
# what is imported before atheris is not instrumented
from tests.hostile.bombs import long_script_names

if __name__ == "__main__":
    fuzz(opened("x.pt"), [long_script_names(3, 2)])
