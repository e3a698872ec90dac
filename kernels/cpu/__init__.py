"""The engine on the CPU: C++ with its operators compiled once for each instruction set, called
through ctypes.

Needs NumPy only. `library` loads it, `reference` says in plain torch what the operators compute;
`interface.h` is the C interface.
"""
