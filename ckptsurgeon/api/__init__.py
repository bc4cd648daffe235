"""The public verbs and types. Each verb opens its inputs, calls the other rooms in order and returns plain results."""
