"""The public verbs and types. Each verb opens its inputs, calls other packages in order and returns plain results."""
