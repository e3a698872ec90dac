"""`python -m sprfast`."""

from sprfast.cli.app import main

main()
