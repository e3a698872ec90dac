import pytest

from sprfast.bench.core import hardware


@pytest.fixture(scope="session", autouse=True)
def small_ceilings():
    """The measured rates do not matter, so the work behind them is small."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(hardware.MATRIX, "cpu", 64)
        patched.setitem(hardware.COPIED, "cpu", 2**16)
        yield
