"""torch's zip archives."""

from tests.fuzz.target import fuzz, opened
from tests.hostile.bombs import SIX_FLOATS, model_with, tensor, zipped

if __name__ == "__main__":
    fuzz(opened("x.pth"), [zipped(model_with(tensor()), **SIX_FLOATS), zipped(model_with(tensor()), 8, **SIX_FLOATS)])
