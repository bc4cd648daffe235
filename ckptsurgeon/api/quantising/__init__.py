"""Chooses the matrices of a model that are quantised, and writes the settings that say so."""
