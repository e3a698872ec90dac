"""Correctness and speed on a machine with a GPU."""
