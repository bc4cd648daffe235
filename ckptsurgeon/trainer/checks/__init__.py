"""The checks before, during and after training; ``suite.py`` lists them."""
