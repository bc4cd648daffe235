"""Reads formats that are only read: files of frameworks other than torch, and programs exported with their weights."""
