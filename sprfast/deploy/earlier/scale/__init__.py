"""The package `sprfast.scale` of version 0.1.0, as far as its model repositories name it."""
