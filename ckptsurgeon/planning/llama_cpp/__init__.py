"""The names and the layout that llama.cpp uses for the networks of transformers, and the conversion back."""
