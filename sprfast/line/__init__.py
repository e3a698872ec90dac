"""The engine in line code: a bounded pipeline that answers every frame once, by its deadline, with
PASS, REJECT or ERROR.
"""

from sprfast.line.answer import Answer
from sprfast.line.line import Line

__all__ = ["Answer", "Line"]
