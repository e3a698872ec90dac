"""A bench report as one HTML page."""
