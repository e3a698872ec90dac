import math

import pytest
import torch

from sprfast.data import corruption
from sprfast.errors import InputError
from sprfast.method import sde
from sprfast.training import recipes
from sprfast.training import train as training
from support.training_runs import config, stop_after, train

ALL = slice(0, 64)


def images(count=64, height=32, width=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((count, 3, height, width), generator=generator) * 1.6 - 0.8


def corrupt(x, share=1.0, batch=64, mine=ALL, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return corruption.corrupt(x, images(5, *x.shape[2:], seed=1), share, batch, mine, generator)


def test_only_painted_pixels_change_and_all_stay_in_range():
    x = images()
    corrupted = corrupt(x)
    outside = (corrupted.painted == 0).expand_as(x)
    assert torch.equal(corrupted.x[outside], x[outside])
    assert set(corrupted.painted.unique().tolist()) == {0.0, 1.0}
    assert corrupted.x.abs().max() <= 1.0
    changed = (corrupted.x != x).any(dim=1, keepdim=True)
    assert changed[corrupted.painted == 1].float().mean() > 0.99


def test_share_is_that_of_the_images_that_are_painted():
    x = images(4096, 16, 16)
    painted = corrupt(x, 0.25, 4096, slice(0, 4096)).painted.flatten(1).amax(dim=1)
    assert painted.mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(corrupt(x[:64], 0.0).x, x[:64])
    # a shape may lie on pixels by less than one, so that nothing is painted
    assert corrupt(x, 1.0, 4096, slice(0, 4096)).painted.flatten(1).amax(dim=1).mean() > 0.97


def test_shapes_are_small_and_large_and_cover_less_than_half():
    area = corrupt(images(1024, 64, 64), 1.0, 1024, slice(0, 1024)).painted.mean(dim=(1, 2, 3))
    assert area.quantile(0.1) < 0.01
    assert 0.02 < area.median() < 0.15
    assert area.quantile(0.95) < 0.5


def test_process_paints_its_share_as_one_process_would():
    x = images()
    whole, share = corrupt(x), corrupt(x[16:32], mine=slice(16, 32))
    assert torch.equal(share.x, whole.x[16:32])
    assert torch.equal(share.painted, whole.painted[16:32])
    assert not torch.equal(corrupt(x, seed=1).x, whole.x)


def test_every_fill_is_what_its_name_says():
    x, donors = images(1), images(1, seed=1)
    colour, smooth = torch.tensor([0.1, -0.2, 0.3]).view(1, 3, 1, 1), torch.full_like(x, 0.5)

    def fill(index, **draws):
        u = torch.zeros(8, 1)
        u[0] = (index + 0.5) / 5
        for name, value in draws.items():
            u[int(name[1:])] = value
        return corruption._fill(u, x, donors, colour, smooth)

    assert torch.allclose(fill(0), colour.mean().expand_as(x))
    assert torch.allclose(fill(0, u7=1.0), colour.expand_as(x))
    assert torch.equal(fill(1), donors)
    assert torch.equal(fill(2, u2=0.25), x.roll(-8, dims=2))
    assert torch.equal(fill(2, u3=0.5), x.roll(-24, dims=3))
    assert torch.allclose(fill(3), x - 0.2)
    assert torch.allclose(fill(3, u5=0.9), x + 0.2)
    assert torch.allclose(fill(4), x.mean(dim=(2, 3), keepdim=True).expand_as(x) + 0.1)


@pytest.mark.parametrize("kind", range(4))
def test_every_shape_lies_around_its_centre(kind):
    u = torch.full((7, 1), 0.5)
    u[0] = (kind + 0.5) / 4
    mask = corruption._shape(u, torch.ones(1, 1, 65, 65))[0, 0]
    rows, columns = mask.nonzero(as_tuple=True)
    assert len(rows) > 10
    for places in (rows, columns):
        assert places.float().mean().item() == pytest.approx(32, abs=3)


def test_loss_is_the_residual_relative_to_what_was_painted():
    generator = torch.Generator().manual_seed(0)
    x, z = images(2, 16, 16).double(), torch.randn((2, 3, 16, 16), generator=generator).double()
    t = torch.tensor([0.003, 0.1], dtype=torch.float64)
    corrupted = corrupt(x.float(), batch=2, mine=slice(0, 2))
    corrupted = corruption.Corrupted(corrupted.x.double(), corrupted.painted.double())
    assert corrupted.painted.sum() > 0
    f = torch.randn((2, 3, 16, 16), generator=generator).double()
    got = training.loss(lambda given, t: f.float(), x, t, z, corrupted).item()
    expected = 0.0
    for i in range(2):
        std = math.sqrt((25 ** (2 * t[i].item()) - 1) / (2 * math.log(25)))
        difference = (std * (f.float()[i] + z[i]) - (x[i] - corrupted.x[i])).square()
        expected += (difference / (std**2 + 0.1**2 * corrupted.painted[i])).sum().item() / 2
    assert got == pytest.approx(expected, rel=1e-6)


def test_loss_with_nothing_painted_is_the_plain_one():
    x, z, t = images(2, 16, 16), torch.ones(2, 3, 16, 16), torch.tensor([0.2, 0.9])
    corrupted = corruption.Corrupted(x, torch.zeros_like(x[:, :1]))

    def network(given, t):
        return given.tanh() - t[:, None, None, None]

    assert torch.equal(training.loss(network, x, t, z, corrupted), training.loss(network, x, t, z))


def test_loss_of_a_network_that_restores_the_good_image_is_zero():
    x, z, t = images(2, 16, 16), torch.ones(2, 3, 16, 16), torch.tensor([0.2, 0.9])
    corrupted = corrupt(x, batch=2, mine=slice(0, 2))
    std = sde.std(t)[:, None, None, None]
    assert training.loss(lambda given, t: (x - given) / std, x, t, z, corrupted) == pytest.approx(0.0, abs=1e-6)


def test_repair_resumes_bit_for_bit(paths, output, tmp_path):
    recipe = {**recipes.RECIPES["repair"], "batch_size": 4}
    whole = train(paths, output, steps=6, **recipe).model
    other = tmp_path / "other.safetensors"
    assert train(paths, other, steps=6, on_step=stop_after(3), **recipe).model is None
    resumed = train(paths, other, steps=6, resume=True, **recipe).model
    assert resumed.sha256 == whole.sha256
    for name in ("corrupted", "brightness"):
        plain = train(paths, tmp_path / f"{name}.safetensors", steps=6, **recipe | {name: 0.0}).model
        assert any(not torch.equal(weight, plain.weights[key]) for key, weight in whole.weights.items())


def test_brightness_changes_by_the_factors_that_the_recipe_allows():
    x, u = images(3, 8, 8), torch.tensor([0.0, 0.5, 1.0])
    got = training.jitter_brightness(x, config(brightness=0.2), u)
    for index, factor in enumerate((math.exp(-0.2), 1.0, math.exp(0.2))):
        torch.testing.assert_close(got[index], (factor * (x[index] + 1) - 1).clamp(max=1.0))
    black = torch.full((3, 3, 8, 8), -1.0)
    assert torch.equal(training.jitter_brightness(black, config(brightness=1.0), u), black)


@pytest.mark.parametrize("name", ["corrupted", "brightness"])
def test_more_than_one_is_refused(name):
    with pytest.raises(InputError, match=rf"{name}: 1\.5 is not allowed"):
        config(**{name: 1.5})
