"""The paper, as pure functions and frozen values. Imports `system` and the face."""
