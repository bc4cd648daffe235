"""Images and sounds as inputs of a network, prepared as for the model's users."""
