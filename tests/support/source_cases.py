"""What the tests of sources share: simulated and scripted cameras, and what their frames hold."""

import threading

import numpy as np

from sprfast.line.frames import FrameFormat
from sprfast.line.sources import Picture, SimulatedLine, Stream

PATIENCE = 60.0  # seconds for what takes milliseconds on a machine that is not busy
PICTURES = [np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8) for seed in range(5)]
FORMAT = FrameFormat(6, 8, "bgr")


def simulated(faults=None, frames=8, **arguments):
    return SimulatedLine(PICTURES, "bgr", frames=frames, faults=faults, **arguments)


def stream(line, frame_format=FORMAT, **arguments):
    return Stream(line.open, frame_format, "cam", **{"first_wait": 0.001, "timeout": PATIENCE, **arguments})


def ids(frames):
    return [frame.id for frame in frames]


def faults(frames):
    """By id."""
    return {frame.id: str(frame.fault) for frame in frames if frame.fault}


class Scripted:
    """A camera that does what it is told, step by step: a picture, None, or an exception."""

    def __init__(self, *steps):
        self.steps, self.closed, self.opened = list(steps), 0, 0

    def open(self):
        self.opened += 1
        return self

    def grab(self, timeout):
        step = self.steps.pop(0) if self.steps else EOFError()
        if isinstance(step, Exception):
            raise step
        return step() if callable(step) else step

    def close(self):
        self.closed += 1


def picture(number, trigger_time=0.0, **others):
    return Picture(PICTURES[(number or 0) % len(PICTURES)], number, trigger_time, **others)


def consume(source):
    """A thread that iterates; the frames, and the thread."""
    frames = []
    thread = threading.Thread(target=lambda: frames.extend(source))
    thread.start()
    return frames, thread
