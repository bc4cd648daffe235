"""The verbs, one file each: NAME, HELP, EXAMPLES and ``run``, whose signature is the command's options."""
