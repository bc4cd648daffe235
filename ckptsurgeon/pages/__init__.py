"""A page to look around in: what is known of a checkpoint as one HTML file that needs nothing else.

``contents`` gathers it as plain data, ``html`` puts that and the program that shows it (``browser/``) into one text.
"""

from .contents import Shown, contents_of
from .html import page_html
from .page import Page
from .runs import FILES, Run, is_run, read_run

__all__ = ["FILES", "Page", "Run", "Shown", "contents_of", "is_run", "page_html", "read_run"]
