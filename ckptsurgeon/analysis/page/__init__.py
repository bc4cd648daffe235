"""A page to look around in: what is known of a checkpoint as one HTML file that needs nothing else.

``contents`` gathers it as plain data, ``html`` puts that and the program that shows it (``browser/``) into one text.
"""
