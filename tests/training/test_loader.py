import errno
import os
import signal
import warnings
from unittest import mock

import numpy as np
import PIL.Image
import pytest
import torch

from sprfast.config import Preprocessing
from sprfast.errors import BackendError, InputError, SprfastWarning
from sprfast.training import loader
from sprfast.training.loader import ImageDataset, batch_order, batches

SIZE = 16
IMAGE_BYTES = 3 * SIZE * SIZE * 4
PREPROCESSING = Preprocessing(size=SIZE)


@pytest.fixture
def paths(tmp_path):
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path in paths:
        PIL.Image.fromarray(random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)
    return paths


def wide(path):
    PIL.Image.new("RGB", (2 * SIZE, SIZE)).save(path)


def first(order, count):
    return [indices for indices, _ in zip(order, range(count), strict=False)]


def taken(paths, count, workers):
    with batches(
        ImageDataset(paths, PREPROCESSING), batch_order(len(paths), 3, seed=1), workers=workers, pin_memory=False
    ) as stream:
        return [next(stream) for _ in range(count)]


def test_order_is_a_function_of_seed_and_step():
    assert first(batch_order(7, 3, seed=5), 20) == first(batch_order(7, 3, seed=5), 20)
    assert first(batch_order(7, 3, seed=5), 20) != first(batch_order(7, 3, seed=6), 20)


@pytest.mark.parametrize("start", [1, 2, 11])
def test_order_from_a_later_step_continues(start):
    assert first(batch_order(7, 3, seed=5, start=start), 9) == first(batch_order(7, 3, seed=5), start + 9)[start:]


@pytest.mark.parametrize(("images", "batch_size"), [(7, 3), (4, 4), (3, 8), (1, 2)])
def test_every_epoch_is_a_fresh_permutation(images, batch_size):
    sequence = [index for indices in first(batch_order(images, batch_size, seed=0), 12 * images) for index in indices]
    epochs = [tuple(sequence[i : i + images]) for i in range(0, 12 * images, images)]
    assert all(sorted(epoch) == list(range(images)) for epoch in epochs)
    assert len(set(epochs)) > 1 or images == 1


def test_shares_of_two_processes_make_the_global_batch():
    shares = [first(batch_order(7, 4, seed=5, share=share), 10) for share in (slice(0, 2), slice(2, 4))]
    assert [one + other for one, other in zip(*shares, strict=True)] == first(batch_order(7, 4, seed=5), 10)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_hold_the_images_of_the_order(paths, workers):
    dataset = ImageDataset(paths, PREPROCESSING)
    got = taken(paths, 6, workers)
    assert got[0].shape == (3, 3, SIZE, SIZE)
    assert got[0].dtype == torch.float32
    for batch, indices in zip(got, first(batch_order(5, 3, seed=1), 6), strict=True):
        assert torch.equal(batch, torch.stack([dataset[index] for index in indices]))


def test_cache_keeps_what_fits_and_no_more(paths):
    dataset = ImageDataset(paths, PREPROCESSING, cache_bytes=2 * IMAGE_BYTES + 1)
    before = [dataset[index] for index in range(5)]
    for path in paths:
        path.unlink()
    assert all(torch.equal(dataset[index], before[index]) for index in (0, 1))
    for index in (2, 3, 4):
        with pytest.raises(InputError, match=rf"{index}\.png"):
            dataset[index]


def test_every_image_is_decoded_once_and_those_held_back_too(paths, monkeypatch):
    decoded = []
    load = loader.load_image
    monkeypatch.setattr(loader, "load_image", lambda path, given: decoded.append(path) or load(path, given))
    dataset = ImageDataset(paths, PREPROCESSING, held_back=paths[1:2])
    assert len(dataset) == 4
    for _ in range(2):
        assert torch.equal(dataset[1], torch.from_numpy(load(paths[2], PREPROCESSING).pixels))
    assert decoded == paths


def test_image_of_another_size_is_an_input_error_in_one_line(paths):
    PIL.Image.new("RGB", (2 * SIZE, SIZE)).save(paths[3])
    with pytest.raises(InputError, match=r"3\.png: 16x32 .* \S*/0\.png has 16x16") as caught:
        ImageDataset(paths, PREPROCESSING)
    assert "\n" not in str(caught.value)


def test_size_that_the_policy_refuses_is_an_input_error(paths):
    PIL.Image.new("RGB", (9, 8)).save(paths[3])
    with pytest.raises(InputError, match=r"1 of 5 images cannot be used: .*3\.png: 8x9 .*not square"):
        ImageDataset(paths, Preprocessing(size=SIZE, size_policy="refuse"))


def test_unreadable_files_are_all_named(paths, tmp_path):
    bad = [tmp_path / f"bad-{index}.png" for index in range(7)]
    for path in bad:
        path.write_bytes(paths[0].read_bytes()[:-20])
    with pytest.raises(InputError) as caught:
        ImageDataset([*paths, *bad], PREPROCESSING, held_back=bad[:1])
    message = str(caught.value)
    assert message.startswith("7 of 12 images cannot be used: ")
    assert [str(path) in message for path in bad] == [True] * 5 + [False] * 2
    assert message.endswith("and 2 more")
    assert "\n" not in message


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("change", [lambda path: path.write_bytes(path.read_bytes()[:40]), wide])
def test_image_that_changes_is_an_input_error_in_one_line(paths, change, workers):
    dataset, order = ImageDataset(paths, PREPROCESSING, cache_bytes=0), batch_order(5, 3, seed=1)
    change(paths[3])
    with (
        pytest.raises(InputError, match=r"3\.png") as caught,
        batches(dataset, order, workers=workers, pin_memory=False) as stream,
    ):
        next(stream), next(stream)
    assert "\n" not in str(caught.value)


def test_no_shared_memory_warns_and_decodes_in_this_process(paths, monkeypatch):
    expected = taken(paths, 3, workers=0)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != "/dev/shm" and access(path, mode))
    with pytest.warns(UserWarning, match="/dev/shm is not writable"):
        got = taken(paths, 3, workers=2)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        taken(paths, 1, workers=0)


def test_workers_end_with_the_context_although_an_exception_holds_the_stream(paths):
    with pytest.raises(RuntimeError) as caught:
        run_into_an_error(paths)
    assert caught.tb is not None
    assert caught.value.args[0]
    for process in caught.value.args[0]:
        assert not os.path.exists(f"/proc/{process}")


def run_into_an_error(paths):
    before = children()
    with batches(ImageDataset(paths, PREPROCESSING), batch_order(5, 3, seed=1), workers=2, pin_memory=False) as stream:
        next(stream)
        raise RuntimeError(children() - before)


def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as stream:
        return set(stream.read().split())


def failing_in_processes(monkeypatch, fails):
    """Putting a batch together fails in a loader process as `fails` does; the tries as (processes,
    batches ahead of each).
    """
    tries, collate, make = [], loader.default_collate, loader.DataLoader

    def noted(*args, num_workers, prefetch_factor, **options):
        tries.append((num_workers, prefetch_factor))
        return make(*args, num_workers=num_workers, prefetch_factor=prefetch_factor, **options)

    def collated(images):
        if torch.utils.data.get_worker_info() is not None:
            fails(tries[-1])
        return collate(images)

    monkeypatch.setattr(loader, "DataLoader", noted)
    monkeypatch.setattr(loader, "default_collate", collated)
    return tries


def no_space(_):
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)")


def test_with_little_shared_memory_fewer_batches_are_decoded_ahead(paths, monkeypatch):
    expected = taken(paths, 5, workers=0)
    tries = failing_in_processes(monkeypatch, lambda current: no_space(current) if current != (1, 1) else None)
    with pytest.warns(SprfastWarning, match=r"No space left on device \(28\)\): fewer batches") as told:
        got = taken(paths, 5, workers=2)
    assert tries == [(2, loader.AHEAD), (2, 1), (1, 1)]
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    assert not any("\n" in str(each.message) for each in told)


def test_memory_that_gets_short_later_costs_no_batch(paths, monkeypatch, tmp_path):
    """The batches that were decoded ahead and not given are decoded again."""
    expected = taken(paths, 6, workers=0)
    short = tmp_path / "short"
    tries = failing_in_processes(monkeypatch, lambda current: short.exists() and current[1] > 1 and no_space(current))
    dataset, order = ImageDataset(paths, PREPROCESSING), batch_order(5, 3, seed=1)
    with batches(dataset, order, workers=1, pin_memory=False) as stream:
        got = [next(stream) for _ in range(2)]
        short.touch()
        with pytest.warns(SprfastWarning, match="fewer batches"):
            got += [next(stream) for _ in range(4)] + [next(stream) for _ in range(4)]
    assert tries == [(1, loader.AHEAD), (1, 1)]
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=False))


def test_no_room_for_a_loader_itself_costs_no_batch(paths, monkeypatch):
    """Its locks are in the shared memory too."""
    expected = taken(paths, 3, workers=0)
    full = mock.Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    monkeypatch.setattr(loader._FORK, "Event", full)
    with pytest.warns(SprfastWarning, match="No space left on device"):
        got = taken(paths, 3, workers=2)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("death", [signal.SIGBUS, signal.SIGKILL])
def test_a_loader_process_that_dies_costs_no_batch_and_interrupts_no_step(paths, monkeypatch, death):
    expected = taken(paths, 3, workers=0)
    failing_in_processes(monkeypatch, lambda _: os.kill(os.getpid(), death))
    with pytest.warns(SprfastWarning, match="process that decodes images failed"):
        got = taken(paths, 3, workers=1)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_whatever_decoding_raises_is_one_sentence(paths, monkeypatch, workers):
    def fails(*_):
        raise MemoryError

    dataset = ImageDataset(paths, PREPROCESSING, cache_bytes=0)
    monkeypatch.setattr(loader, "load_image", fails)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            pytest.raises(BackendError, match=r"^images cannot be decoded: MemoryError$"),
            batches(dataset, batch_order(5, 3, seed=1), workers=workers, pin_memory=False) as stream,
        ):
            next(stream)
