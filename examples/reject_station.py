"""A reject station: camera in, reject signal out, until the camera ends or a signal comes.

python examples/reject_station.py screw.safetensors --camera 0
python examples/reject_station.py screw.safetensors --simulate good-parts/ --faults 0.01
"""

import argparse
import json
import sys
from pathlib import Path

import sprfast
from sprfast.data import datasets as data
from sprfast.data import images
from sprfast.errors import SprfastError
from sprfast.line import sources
from sprfast.line.frames import FrameFormat
from sprfast.system.signals import stop_signals


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--camera", default="0", help="number of a device, or a URL")
    parser.add_argument("--simulate", metavar="FOLDER", help="of images of one size, which a camera seems to show")
    parser.add_argument("--period", type=float, default=0.1, help="seconds between triggers, and for an answer")
    parser.add_argument("--frames", type=int, help="of the simulated camera; absent: it goes on")
    parser.add_argument("--faults", type=float, default=0.0, help="share of them that are spoilt")
    given = parser.parse_args()

    engine = sprfast.load(given.model)
    if given.simulate:
        pictures = [images.read_rgb(path, engine.preprocessing) for path in data.image_files([Path(given.simulate)])]
        faults = sources.simulated_faults(given.frames, given.faults) if given.faults else {}
        declared = FrameFormat(*pictures[0].shape[:2], "rgb")
        simulation = sources.SimulatedLine(pictures, "rgb", frames=given.frames, period=given.period, faults=faults)
        stream = sources.Stream(simulation.open, declared, period=given.period, first_wait=0.01)
    else:
        device = int(given.camera) if given.camera.isdecimal() else given.camera
        stream = sources.Stream(lambda: sources.OpenCvCamera(device))

    def act(answer: sprfast.Answer) -> None:
        if answer.verdict != "PASS":  # REJECT and ERROR alike; a real station sets an output here
            print(f"reject {answer.id}: {answer.result.reason or f'score {answer.result.pred_score:.4g}'}", flush=True)

    with stop_signals(stream.close) as stop, sprfast.Line(engine, act, deadline=given.period) as line:
        print("ready", flush=True)
        line.run(stream)
        drained = line.drain(timeout=5.0)
    health = line.health()
    counts = {"taken": health.taken, "refused": health.refused, "drained": drained, **health.verdicts}
    print(json.dumps({**counts, "errors": health.errors}))
    return stop.exit_code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SprfastError as error:
        sys.exit(f"reject_station: {error}")
