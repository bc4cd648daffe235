"""Completion in bash, zsh and fish: verbs, options, their values, and keys of the checkpoints on the command line.

A shell's script (``installing.py``) sets ``_CKPT_COMPLETE`` to the shell's name and passes the typed words on stdin,
separated by NUL. The words are never passed as arguments: otherwise a version of the program without completion would
run the line that is being typed. If there are arguments, the variable is ignored. The output is a line with the kind of
the completions (``words``, ``partial`` or ``files``), then one completion per line.
"""
