"""Speed of a model on this machine, beside peers in the same run and with parity beside every
figure.
"""

if __name__ != "sprfast.bench":
    raise ImportError(
        f"this package is sprfast.bench, it cannot be imported as {__name__!r}: run from its parent folder or "
        f"install it"
    )
