"""What sprfast computes with: Triton operators in `triton`, the C++ engine in `cpu`. Imports
nothing of sprfast.
"""

if __name__ != "sprfast.kernels":
    raise ImportError(
        f"this package is sprfast.kernels, it cannot be imported as {__name__!r}: run from its parent folder or "
        f"install it"
    )
