"""Uploads the files of an output to an address; no file appears there before all files are uploaded."""
