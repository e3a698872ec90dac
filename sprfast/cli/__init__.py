"""The command line. Imports every room; nothing imports it."""
