"""The page of ``ckpt view``: a checkpoint as one HTML file that needs no other.

``contents`` gathers it as plain data, ``html`` puts that and the program that shows it (``browser/``) into one text.
"""
