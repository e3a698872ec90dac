import pytest

from sprfast.engine.engine import Engine
from support.line_cases import engine_with_network


@pytest.fixture(scope="module")
def engine(small_model):
    return Engine(small_model)


@pytest.fixture
def held(small_model):
    """An engine whose network is held, and the network."""
    engine, network = engine_with_network(small_model)
    yield engine, network
    network.open.set()
