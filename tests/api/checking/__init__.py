"""Tests of the facts that ``check`` collects."""
