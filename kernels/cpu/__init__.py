"""The operators of the whole network on the CPU: C++ compiled once for each instruction set, called
through ctypes.

Needs NumPy only. `library` loads them, `operators` calls them on arrays, `reference` says in plain
torch what they compute; `interface.h` is their C interface.
"""
