"""The probe of a model: what an export, or a network built on this machine, is checked with before
it scores anything.
"""

from __future__ import annotations

import torch

from sprfast.formats.export_metadata import Map, Probe, probe_image
from sprfast.formats.model import Model
from sprfast.method import scoring, tiles, unet
from sprfast.method.noise import noise_bank


@torch.inference_mode()
def probe(model: Model, height: int, width: int, tolerance: float) -> Probe:
    """The definition's error map of `export_metadata.probe_image`, under the model's own noise.

    Args:
        height, width: pixels at the network's input.
        tolerance: relative RMS error that is allowed.
    """
    network = unet.from_weights(model.network, model.weights)
    return Probe(defined(model, network, probe_image(height, width))[0, 0], tolerance)


@torch.inference_mode()
def defined(model: Model, network: unet.ScoreUNet, x: Map) -> Map:
    """The definition's error maps (B, 1, H, W) of images (B, 3, H, W), under the model's own noise;
    by way of tiles where its scoring mode says so.
    """
    tile = model.scoring_mode.tile
    noise = noise_bank(model.schedule, *tiles.shape(x.shape[2:], tile), model.noise_seed)

    def of_tiles(part: Map) -> Map:
        error_map: Map = scoring.error_map(network, torch.from_numpy(part), model.schedule, noise).numpy()
        return error_map

    return tiles.error_maps(x, tile, of_tiles)
