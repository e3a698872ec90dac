"""Where frames come from: cameras, folders and a simulation, as iterables of `Frame` for `Line.run`."""

from sprfast.sources.camera import Camera, Picture, Source
from sprfast.sources.folder import FolderWatch
from sprfast.sources.harvesters import HarvestersCamera
from sprfast.sources.opencv import OpenCvCamera
from sprfast.sources.simulated import Fault, SimulatedCamera, SimulatedLine, simulated_faults
from sprfast.sources.stream import Stream

__all__ = [
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
