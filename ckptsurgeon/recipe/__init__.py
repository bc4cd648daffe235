"""The recipe: what made an output, carried by the output itself.

Version, verb, arguments, seed, sources (name, path relative to the output, size, header SHA-256), what became of
each tensor and its CRC-32. No times, no absolute paths: the same inputs give the same bytes. The seal is a digest
over everything in the output that is not a tensor.
"""

from .making import made_of, make_recipe
from .reading import parse_recipe
from .recipe import Made, Recipe
from .writing import RecipeText

__all__ = ["Made", "Recipe", "RecipeText", "made_of", "make_recipe", "parse_recipe"]
