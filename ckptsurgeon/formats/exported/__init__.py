"""Reads the files of frameworks other than torch, and of programs exported with their weights; some can be written."""
