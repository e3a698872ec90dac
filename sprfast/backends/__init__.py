"""What computes maps: torch backends, and sessions on numpy arrays. Imports `lowering` and what
lies below, and `kernels`.
"""
