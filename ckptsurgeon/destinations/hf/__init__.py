"""Makes destinations of the models that transformers defines."""
