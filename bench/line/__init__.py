"""What a line costs over its engine, and what it does over days."""
