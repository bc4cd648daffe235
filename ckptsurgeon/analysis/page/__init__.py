"""The page of ``ckpt view``: a checkpoint as one HTML file that does not load any other file.

``contents`` gathers the data, ``html`` puts it and the program that shows it (``browser/``) into one file.
"""
