"""Checks the arguments of the verbs, and opens the inputs that a plan keeps open until ``apply``."""
