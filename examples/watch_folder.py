"""Scores every image that appears in a folder: one JSON line each, Prometheus metrics beside, until
a signal comes.

python examples/watch_folder.py screw.safetensors incoming/ --metrics-port 9464
"""

import argparse
import json
import logging
import sys

import prometheus_client

import sprfast
from sprfast.errors import SprfastError
from sprfast.line import sources, telemetry
from sprfast.system.signals import stop_signals


def write(answer: sprfast.Answer) -> None:
    score = answer.result.pred_score if answer.error is None else None
    print(
        json.dumps(
            {"image": answer.id, "verdict": answer.verdict, "pred_score": score, "reason": answer.result.reason}
        ),
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder")
    parser.add_argument("--existing", action="store_true", help="also the images that are there already")
    parser.add_argument("--metrics-port", type=int, default=9464)
    given = parser.parse_args()

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    folder = sources.FolderWatch(given.folder, existing=given.existing)
    with stop_signals(folder.close) as stop, sprfast.Line(sprfast.load(given.model), write, in_order=True) as line:
        telemetry.expose(line)
        prometheus_client.start_http_server(given.metrics_port, addr="127.0.0.1")
        line.run(folder)
    return stop.exit_code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SprfastError as error:
        sys.exit(f"watch_folder: {error}")
