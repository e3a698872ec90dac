"""One bench run: candidates, scenarios, timing, reports."""
