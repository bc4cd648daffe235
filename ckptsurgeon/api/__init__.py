"""The public verbs and types. Each verb opens what it needs, calls the rooms in order and returns plain results."""
