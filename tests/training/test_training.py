import collections
import math
import platform
import re
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import sprfast
from sprfast.config import Level, Schedule
from sprfast.data import datasets
from sprfast.errors import CheckFailedError, InputError, SprfastWarning
from sprfast.formats import model as model_file
from sprfast.formats import tensors as archive
from sprfast.formats import trained_on
from sprfast.method import sde
from sprfast.method.unet import ScoreUNet
from sprfast.system import devices
from sprfast.training import train as training
from sprfast.training.checkpoint import Recipe, TrainingState, checkpoint_path
from support.training_runs import NETWORK, PREPROCESSING, config, stop_after, train

FREQUENCIES = "embed.0.W"


def initial_state(**changes):
    return TrainingState(
        Recipe(NETWORK, PREPROCESSING, Schedule(), config(**changes), "fingerprint"), torch.device("cpu")
    )


def test_loss_is_the_formula_of_the_paper():
    torch.manual_seed(0)
    network = ScoreUNet(NETWORK).double()
    x, z = torch.rand(3, 3, 16, 16).double() * 2 - 1, torch.randn(3, 3, 16, 16).double()
    t = torch.tensor([1e-5, 0.3, 1.0], dtype=torch.float64)
    got = training.loss(network.scaled_score, x, t, z).item()
    expected = 0.0
    for i in range(3):
        std = math.sqrt((25 ** (2 * t[i].item()) - 1) / (2 * math.log(25)))
        score = network((x[i] + std * z[i])[None], t[i : i + 1])[0]
        expected += (score * std + z[i]).square().sum().item() / 3
    assert got == pytest.approx(expected, rel=1e-6)


def test_loss_of_a_network_in_bfloat16_is_summed_in_float32():
    x, t, z = torch.zeros(2, 3, 64, 64), torch.full((2,), 0.5), torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        got = training.loss(lambda perturbed, t: z.bfloat16(), x, t, z)
    assert got.dtype == torch.float32
    expected = (z.bfloat16().double() + z.double()).square().flatten(1).sum(1).mean()
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)


def test_loss_of_a_perfect_network_is_zero():
    x, z, t = torch.rand(2, 3, 16, 16), torch.randn(2, 3, 16, 16), torch.tensor([0.2, 0.9])
    score = training.loss(lambda perturbed, t: -(perturbed - x) / sde.std(t)[:, None, None, None], x, t, z)
    assert score.item() == pytest.approx(0.0, abs=1e-6)


def test_loss_falls_on_constant_images(tmp_path, output):
    for i in range(4):
        PIL.Image.new("RGB", (16, 16), (60, 120, 180)).save(tmp_path / f"{i}.png")
    losses = [loss for _, loss in train(sorted(tmp_path.glob("*.png")), output, steps=30, learning_rate=1e-3).losses]
    assert len(losses) == 30
    assert all(map(math.isfinite, losses))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


@pytest.mark.parametrize(("limit", "steps"), [({"steps": 9}, 9), ({"steps": 0, "epochs": 5}, 10)])
def test_learning_rate_falls_at_each_third_of_steps_and_epochs(paths, output, monkeypatch, limit, steps):
    rates = recorded_rates(monkeypatch)
    assert train(paths, output, **limit).step == steps
    assert [rate for _, rate in rates] == pytest.approx([1e-4 * 0.1 ** (3 * step // steps) for step in range(steps)])


@pytest.mark.clock
def test_learning_rate_falls_at_each_third_of_the_time_limit(paths, output, monkeypatch):
    limit = 3.0
    rates = recorded_rates(monkeypatch)
    started = time.monotonic()
    train(paths, output, steps=0, time_limit=limit)
    thirds = [round(-math.log10(rate / 1e-4)) for _, rate in rates]
    ends = [now - started for now, _ in rates]
    assert sorted(set(thirds)) == [0, 1, 2]
    for third, end, end_before in zip(thirds, ends, [0.0, *ends], strict=False):
        assert end >= third * limit / 3
        assert end_before <= (third + 1) * limit / 3 + 0.05


def test_learning_rate_rises_over_the_warm_up_and_falls_as_a_half_cosine(paths, output, monkeypatch):
    rates = recorded_rates(monkeypatch)
    train(paths, output, steps=8, warm_up=2, decay="cosine", learning_rate=2e-3)
    cosine = [2e-3 * 0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert [rate for _, rate in rates] == pytest.approx([cosine[0] / 2, *cosine[1:]])


def test_times_are_uniform_in_themselves_or_in_their_logarithm():
    u = torch.linspace(0, 0.999, 100)
    uniform = training.times(config(), u)
    assert torch.equal(uniform, u * (1.0 - 1e-5) + 1e-5)
    logarithmic = training.times(config(t_sampling="log_uniform", t_min=1e-4, t_max=0.1), u)
    assert logarithmic[0].item() == pytest.approx(1e-4)
    assert logarithmic[-1].item() == pytest.approx(0.1, rel=0.01)
    steps = logarithmic.log().diff()
    assert torch.allclose(steps, steps[0].expand(99), rtol=1e-3)


def test_images_held_back_are_not_trained_on_and_are_named(paths, output, tmp_path):
    paths = [Path(shutil.copy(path, tmp_path)) for path in paths]
    model = train(paths, output, steps=2, hold_back=0.25, seed=3).model
    trained, held_back = datasets.split(paths, 0.25, 3)
    assert model.provenance["held_back"] == [path.name for path in held_back]
    assert (model.provenance["images"], len(held_back)) == (6, 2)
    assert sorted(trained + held_back) == paths
    for path in held_back:  # their content is part of the recipe's fingerprint, but of no step
        PIL.Image.new("RGB", (16, 16)).save(path)
    again = train(paths, tmp_path / "again.safetensors", steps=2, hold_back=0.25, seed=3).model
    assert again.sha256 == model.sha256
    assert datasets.split(paths, 0.25, 4)[1] != held_back


@pytest.mark.parametrize("share", [0.05, 0.95])
def test_holding_back_nothing_or_everything_is_refused(paths, output, share):
    with pytest.raises(InputError, match=f"hold_back: {share} of 8 images are"):
        train(paths, output, hold_back=share)
    assert not output.exists()


def recorded_rates(monkeypatch):
    """(time, learning rate) of each optimizer step that follows."""
    rates = []
    step = torch.optim.AdamW.step

    def recording(self, *arguments):
        rates.append((time.monotonic(), self.param_groups[0]["lr"]))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    return rates


def test_average_follows_its_recurrence():
    state = initial_state(ema_decay=0.3)
    expected = {name: value.detach().double() for name, value in state.trained.items()}
    for step in range(6):
        decay = min(0.3, (1 + step) / (10 + step))
        for name, value in state.trained.items():
            value.data += torch.randn_like(value)
            expected[name] = decay * expected[name] + (1 - decay) * value.detach().double()
        state.update_average(0.3)
        state.step += 1
    for name, value in expected.items():
        assert torch.allclose(state.average[name].double(), value, atol=1e-6)


def test_frequencies_are_never_trained_and_everything_else_is(paths, output):
    before = {name: value.clone() for name, value in initial_state().network.state_dict().items()}
    weights = train(paths, output).model.weights
    assert torch.equal(weights[FREQUENCIES], before[FREQUENCIES])
    assert [name for name in before if torch.equal(weights[name], before[name])] == [FREQUENCIES]


def test_model_file_holds_the_average_and_where_it_comes_from(paths, output):
    progress = []
    outcome = train(paths, output, on_step=progress.append)
    model = model_file.load(output)
    assert model.sha256 == outcome.model.sha256
    assert model.scoring_mode.threshold is None
    assert (model.network, model.preprocessing, model.schedule) == (NETWORK, PREPROCESSING, Schedule((Level(1e-3, 3),)))
    seconds = model.provenance.pop("seconds")
    assert 0 < seconds < 600
    assert 100 < model.provenance.pop("peak_memory_mib") < 100_000
    assert model.provenance == {
        "data_fingerprint": datasets.fingerprint(paths),
        "images": 8,
        "held_back": [],
        "trained_on": trained_on.packed(map(datasets.digest, paths)),
        "held_back_digests": "",
        "steps": 6,
        "loss": outcome.losses[-1][1],
        "training": config().to_json(),
        "versions": {"sprfast": sprfast.__version__, "torch": torch.__version__},
    }
    assert not checkpoint_path(output).exists()
    assert (outcome.stopped_by, outcome.step) == (None, 6)
    assert [(each.step, each.loss) for each in progress] == list(outcome.losses)
    assert [each.fraction for each in progress] == pytest.approx([step / 6 for step in range(1, 7)])
    assert progress[-1].seconds_left == 0
    assert all(each.images_per_second > 0 for each in progress)


def test_bfloat16_is_what_convolutions_compute_in_and_no_weight_is_kept_in(paths, output):
    seen = collections.defaultdict(set)
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, given, made: seen[type(module).__name__].add(made.dtype)
    )
    try:
        train(paths, output, precision="bfloat16", on_step=stop_after(2))
    finally:
        handle.remove()
    assert seen["Conv2d"] == seen["Linear"] == {torch.bfloat16}
    assert seen["FourierFeatures"] == {torch.float32}
    held, _ = archive.read(checkpoint_path(output), kind="checkpoint")
    assert {name.split(".")[0] for name in held} == {"network", "average", "optimizer"}
    assert {value.dtype for value in held.values()} == {np.dtype(np.float32)}
    model = train(paths, output, precision="bfloat16", resume=True).model
    assert model.provenance["training"]["precision"] == "bfloat16"
    assert {value.dtype for value in model.weights.values()} == {torch.float32}


def test_losses_in_bfloat16_are_those_of_float32_but_for_rounding(paths, output):
    plain, rounded = (
        np.array([loss for _, loss in train(paths, output, precision=precision).losses])
        for precision in ("float32", "bfloat16")
    )
    assert (rounded != plain).all()
    np.testing.assert_allclose(rounded, plain, rtol=2.0**-8)


def test_bfloat16_is_in_float32_where_a_group_is_normalised():
    """In bfloat16 the mean of values that lie ten deviations from 0 would be off by up to 0.03."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(2, 64, 64, 64, generator=generator) + 10).bfloat16().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        got = torch.nn.GroupNorm(32, 64)(x)
    expected = torch.nn.functional.group_norm(x.double(), 32)
    error = (got.double() - expected).norm() / expected.norm()
    assert error < 2.0**-8  # what rounding the result to bfloat16 may add


@pytest.mark.parametrize(("accelerated", "told"), [(False, 1), (True, 0)])
def test_bfloat16_on_a_cpu_without_instructions_for_it_warns_in_one_line(paths, output, monkeypatch, accelerated, told):
    monkeypatch.setattr(devices, "cpu_multiplies_bfloat16", lambda: accelerated)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(paths, output, steps=1, precision="bfloat16")
        train(paths, output, steps=1)
    assert [each.category for each in caught] == [SprfastWarning] * told
    for each in caught:
        assert re.fullmatch(r"precision bfloat16: .* a step takes longer than in float32", str(each.message))


@pytest.mark.skipif(platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(), reason="x86-64 Linux")
def test_whether_a_cpu_multiplies_bfloat16_is_what_the_kernel_says():
    assert devices.cpu_multiplies_bfloat16() == ("avx512_bf16" in Path("/proc/cpuinfo").read_text().split())


def test_seed_decides_the_weights_and_workers_do_not(paths, output):
    torch.manual_seed(123)
    first = train(paths, output, steps=3).model.sha256
    torch.manual_seed(456)
    assert train(paths, output, steps=3, workers=2).model.sha256 == first
    assert train(paths, output, steps=3, seed=1).model.sha256 != first


@pytest.mark.parametrize(
    ("weight", "what"),
    [
        (1e30, "the loss became NaN or infinite"),  # its square is infinite
        # the loss is finite, its gradient's square is not
        (1e14, "the weights or their gradients became NaN or infinite"),
    ],
)
def test_divergence_stops_with_the_last_good_state_kept(paths, output, weight, what):
    train(paths, output, on_step=stop_after(2))
    checkpoint = checkpoint_path(output)
    tensors, document = archive.read(checkpoint, kind="checkpoint")
    tensors["network.outc.conv.weight"].fill(weight)
    archive.write(checkpoint, tensors, document, kind="checkpoint")
    good = checkpoint.read_bytes()
    with pytest.raises(CheckFailedError, match=what) as caught:
        train(paths, output, resume=True, checkpoint_every=0.0)
    assert caught.value.exit_code == 1
    assert "step 3" in str(caught.value)
    assert str(checkpoint) in str(caught.value)
    assert checkpoint.read_bytes() == good
    assert archive.read(checkpoint, kind="checkpoint")[1]["step"] == 2
    assert not output.exists()


def test_divergence_in_the_last_step_writes_no_model(paths, output):
    train(paths, output, steps=3, on_step=stop_after(2))
    tensors, document = archive.read(checkpoint_path(output), kind="checkpoint")
    tensors["network.outc.conv.weight"].fill(1e14)
    archive.write(checkpoint_path(output), tensors, document, kind="checkpoint")
    with pytest.raises(CheckFailedError, match="step 3"):
        train(paths, output, steps=3, resume=True)
    assert not output.exists()


def test_missing_output_folder_is_an_input_error_before_the_first_step(paths, tmp_path):
    steps = []
    with pytest.raises(InputError, match="cannot be written"):
        train(paths, tmp_path / "missing" / "model.safetensors", on_step=steps.append)
    assert not steps


def test_images_of_two_shapes_are_an_input_error(paths, tmp_path, output):
    PIL.Image.new("RGB", (32, 16)).save(tmp_path / "wide.png")
    with pytest.raises(InputError, match=r"wide\.png"):
        train([*paths, tmp_path / "wide.png"], output)


def test_truncated_image_is_an_input_error_before_the_first_step(paths, tmp_path, output):
    (tmp_path / "cut.png").write_bytes(paths[0].read_bytes()[:50])
    with pytest.raises(InputError, match=r"cut\.png"):
        train([*paths, tmp_path / "cut.png"], output)
    assert not checkpoint_path(output).exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("time_limit", 5.0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("weight_decay", -0.1),
        ("decay_factor", 0.0),
        ("ema_decay", 1.0),
        ("t_min", 0.0),
        ("seed", 2**32),
        ("precision", "float16"),
    ],
)
def test_setting_out_of_range_is_an_input_error_that_names_it(field, value):
    with pytest.raises(InputError, match=field):
        config(**{field: value})
