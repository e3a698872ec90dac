"""The package `sprfast.scale` of version 0.1.0, as far as model repositories of that version name it."""
