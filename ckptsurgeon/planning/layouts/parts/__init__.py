"""Blocks, names and orders of rows that several families of networks share."""
