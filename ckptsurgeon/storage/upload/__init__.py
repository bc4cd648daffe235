"""Uploads the files of an output to an address, where they are seen only when all of them are there."""
