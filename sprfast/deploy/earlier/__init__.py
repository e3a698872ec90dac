"""Module names that files written by earlier versions import; nothing else does."""
