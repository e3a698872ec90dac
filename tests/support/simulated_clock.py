"""A clock for tests of what comes by the clock."""


class Clock:
    """Time that passes only when somebody waits or works."""

    def __init__(self):
        self.time = 100.0

    def now(self):
        return self.time

    def sleep_until(self, moment):
        self.time = max(self.time, moment)
