"""Completion in bash, zsh and fish: verbs, options, their values, and keys of the checkpoint that a line names.

A shell's script (``scripts.py``) sets ``_CKPT_COMPLETE`` to the shell's name and gives what was typed on stdin, with
NUL between: nothing of a line is ever an argument, so that no version of the program could carry it out, and with
arguments it is no question whatever the environment holds. The answer is a line that says of which kind it is, then one
candidate a line.
"""
