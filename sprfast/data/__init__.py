"""Pixels and data sets. Imports `formats` and what lies below."""
