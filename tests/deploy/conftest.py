import pytest

from sprfast.deploy import export
from sprfast.deploy.export import Request
from sprfast.formats import model as model_file
from support.scoring_mode_cases import with_settings


@pytest.fixture
def source(small_model, tmp_path):
    """A model file named screw, with settings."""
    path = tmp_path / "screw.safetensors"
    model_file.save(path, with_settings(small_model))
    return path


@pytest.fixture
def graph(small_model, tmp_path):
    """An ONNX export named screw, of 32x48."""
    path = tmp_path / "screw.onnx"
    export.export(small_model, path, Request("onnx", size=(32, 48)))
    return path
