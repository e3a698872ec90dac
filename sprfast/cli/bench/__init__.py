"""The group `bench`: one file a command."""
