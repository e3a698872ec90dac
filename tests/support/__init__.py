"""What several test files share: cases, faults, a simulated device, and the folders of the
project.
"""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
