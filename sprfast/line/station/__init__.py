"""A station: a line with its camera, what hears its answers, and the page that shows it. The page
is in `server`, which needs `sprfast[station]`; nothing else here does.
"""

from sprfast.line.station.station import Station

__all__ = ["Station"]
