"""`python -m sprfast`."""

from sprfast.cli import main

main()
