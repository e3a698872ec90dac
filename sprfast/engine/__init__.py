"""Image to verdict. Imports `backends` and what lies below."""
