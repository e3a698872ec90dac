"""Where frames come from: cameras, folders and a simulation, as iterables of `Frame` for
`Line.run`.
"""

from sprfast.line.sources.basler import BaslerCamera
from sprfast.line.sources.camera import Camera, Picture, Source
from sprfast.line.sources.folder import FolderWatch
from sprfast.line.sources.harvesters import HarvestersCamera
from sprfast.line.sources.opencv import OpenCvCamera
from sprfast.line.sources.simulated import Fault, SimulatedCamera, SimulatedLine, simulated_faults
from sprfast.line.sources.stream import Stream

__all__ = [
    "BaslerCamera",
    "Camera",
    "Fault",
    "FolderWatch",
    "HarvestersCamera",
    "OpenCvCamera",
    "Picture",
    "SimulatedCamera",
    "SimulatedLine",
    "Source",
    "Stream",
    "simulated_faults",
]
