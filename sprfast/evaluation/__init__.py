"""What a model is worth. Imports `engine` and what lies below."""
