"""A model repository for NVIDIA's Triton Inference Server, and what runs in it."""
