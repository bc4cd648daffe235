"""Corpora's own lists of clips, one file each: ``MANIFEST`` knows them and reads them."""
