"""Training in eager PyTorch. Imports `evaluation` and what lies below."""
