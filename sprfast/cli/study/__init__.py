"""The group `study`: one file a command."""
