"""The arguments of the verbs: their types, and the inputs that plans keep open."""
