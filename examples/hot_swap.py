"""A line whose model follows a file: a new one serves once it has passed its self-test, a broken
one changes nothing.

python examples/hot_swap.py screw.safetensors good-parts/ --frames 600
"""

import argparse
import collections
import os
import sys
import threading
from pathlib import Path

import sprfast
from sprfast.data import datasets as data
from sprfast.data import images
from sprfast.errors import SprfastError
from sprfast.line import sources
from sprfast.system.signals import stop_signals


def follow(path: str, line: sprfast.Line, ended: threading.Event) -> None:
    """Load the file again whenever another one is in its place."""
    seen = os.stat(path).st_mtime_ns
    while not ended.wait(0.2):
        try:
            if (now := os.stat(path).st_mtime_ns) != seen:
                seen = now
                line.swap(sprfast.load(path))
                print(f"model {line.health().model.sha256[:12]} serves", flush=True)
        except (OSError, SprfastError) as error:
            print(f"the old model goes on: {error}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("pictures", help="folder of images that a simulated camera shows in turn")
    parser.add_argument("--frames", type=int, help="absent: it goes on")
    given = parser.parse_args()

    engine = sprfast.load(given.model)
    pictures = [images.read_rgb(path, engine.preprocessing) for path in data.image_files([Path(given.pictures)])]
    camera = sources.Stream(sources.SimulatedLine(pictures, "rgb", frames=given.frames, period=0.05).open)
    verdicts: collections.Counter[str] = collections.Counter()
    ended = threading.Event()
    with (
        stop_signals(camera.close) as stop,
        sprfast.Line(engine, lambda answer: verdicts.update([answer.verdict])) as line,
    ):
        print(f"model {line.health().model.sha256[:12]} serves", flush=True)
        following = threading.Thread(target=follow, args=(given.model, line, ended))
        following.start()
        line.run(camera)
        ended.set()
        following.join()
    print(dict(verdicts), f"{line.health().swaps} swaps", flush=True)
    return stop.exit_code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SprfastError as error:
        sys.exit(f"hot_swap: {error}")
