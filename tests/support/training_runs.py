"""Short trainings of a tiny network."""

import os
import signal

from sprfast.config import NetworkConfig, Preprocessing, TrainingConfig
from sprfast.training import train as training

NETWORK = NetworkConfig(32, 8)
PREPROCESSING = Preprocessing(size=16)


def config(**changes):
    return TrainingConfig(**{"epochs": 0, "steps": 6, "batch_size": 4} | changes)


def train(
    paths, output, *, workers=0, resume=False, force=True, checkpoint_every=300.0, on_step=lambda _: None, **changes
):
    return training.train(
        paths,
        output,
        network=NETWORK,
        preprocessing=PREPROCESSING,
        training=config(**changes),
        device="cpu",
        workers=workers,
        resume=resume,
        force=force,
        checkpoint_every=checkpoint_every,
        on_step=on_step,
    )


def stop_after(step):
    """An `on_step` that sends this process a SIGTERM after a step."""
    return lambda progress: os.kill(os.getpid(), signal.SIGTERM) if progress.step == step else None
