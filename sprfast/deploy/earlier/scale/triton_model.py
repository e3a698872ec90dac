"""What `model.py` of a model repository that version 0.1.0 wrote imports."""

from sprfast.deploy.triton_server.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
