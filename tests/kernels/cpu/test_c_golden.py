"""The golden weights through the C interface: the definition's maps of the golden images, as 16-bit
frames.
"""

import numpy as np
import pytest
import torch

import sprfast
from sprfast.config import Level, NetworkConfig, Preprocessing, Schedule
from sprfast.deploy import export
from sprfast.deploy.export import Request
from sprfast.evaluation import parity
from sprfast.formats.model import Model
from sprfast.kernels.cpu import library
from sprfast.method import scoring, unet
from sprfast.method.noise import noise_bank
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.threshold import manual
from support import c_interface as c
from support.machine import NATIVE

LIMITS = {"float32": parity.GOLDEN_RMS_TOLERANCE, "bfloat16": 5e-3}  # relative RMS errors of error maps
pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.usefixtures("bfloat16_on_any_processor")
def test_golden_images_through_the_c_interface(machine, c_library, golden_folder, golden_document, tmp_path, precision):
    if precision == "bfloat16" and machine is not NATIVE:
        pytest.skip("takes minutes; the operator runs there in test_cpu_bfloat16.py")
    case = golden_document["cases"]["tiny_32"]
    schedule = Schedule((Level(parity.GOLDEN_T, case["iterations"]),))
    model = Model(
        NetworkConfig(),
        ScoringMode(schedule, threshold=manual(1.0)),
        Preprocessing(size=min(case["height"], case["width"])),
        parity.golden_weights(golden_document),
    )
    export.export(model, tmp_path / "golden.plan", Request("plan", precision=precision))
    network, runner = unet.from_weights(model.network, model.weights), sprfast.load(tmp_path / "golden.plan", threads=1)
    instruction_set = machine.instruction_set(precision).encode()
    engine = c_library.open(tmp_path / "golden.plan", threads=1, instruction_set=instruction_set)
    with np.load(golden_folder / "tiny_32.npz") as stored:
        images = stored["x"]
    for image in images:
        frame = np.rint((image.transpose(1, 2, 0) + 1) / 2 * 65535).astype(np.uint16)
        result, errors, anomalies, _ = engine.maps(c.Frame.of(np.ascontiguousarray(frame)))
        expected_score = runner.predict(frame, channel_order="rgb").pred_score
        assert result.pred_score == pytest.approx(expected_score, rel=machine.tolerance, abs=0)
        x = torch.from_numpy(runner.prepare(frame, "rgb").pixels[None])
        assert (x[0] - torch.from_numpy(image)).abs().max() < 2e-5
        noise = noise_bank(schedule, *image.shape[1:], model.noise_seed)
        with torch.inference_mode():
            expected = scoring.error_map(network, x, schedule, noise)
            expected_map = scoring.anomaly_map(expected)[0, 0].numpy()
        errors, expected_errors = errors.astype(np.float64), expected[0, 0].numpy()
        error = np.sqrt(np.square(errors - expected_errors).mean() / np.square(expected_errors).mean())
        assert error <= LIMITS[precision]
        highest = float(expected_map.max())
        limit = parity.GOLDEN_MAP_TOLERANCE if precision == "float32" else LIMITS[precision] * highest
        np.testing.assert_allclose(anomalies, expected_map, rtol=0, atol=limit)
        assert result.pred_score == pytest.approx(highest, abs=limit)
    engine.close()
