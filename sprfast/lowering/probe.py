"""The probe of a model: what an export, or a network built on this machine, is checked with before
it scores anything.
"""

from __future__ import annotations

import torch

from sprfast.formats.export_metadata import Probe, probe_image
from sprfast.formats.model import Model
from sprfast.method import scoring, unet
from sprfast.method.noise import noise_bank


@torch.inference_mode()
def probe(model: Model, height: int, width: int, tolerance: float) -> Probe:
    """The definition's error map of `export_metadata.probe_image`, under the model's own noise.

    Args:
        height, width: pixels at the network's input.
        tolerance: relative RMS error that is allowed.
    """
    network = unet.from_weights(model.network, model.weights)
    noise = noise_bank(model.schedule, height, width, model.noise_seed)
    image = torch.from_numpy(probe_image(height, width))
    error_map = scoring.error_map(network, image, model.schedule, noise)[0, 0]
    return Probe(error_map.numpy(), tolerance)
