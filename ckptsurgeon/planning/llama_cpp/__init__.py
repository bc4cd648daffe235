"""The names and the layout that llama.cpp has for the networks of transformers, and the way back."""
