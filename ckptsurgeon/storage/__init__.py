"""Bytes: read from files and servers, fetched, signed, written whole or not at all."""
