"""A pass as a list of launches: the network's own bits, in memory of each call's own."""

import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sprfast.backends import triton as triton_backend
from sprfast.backends.launch_list import LaunchList
from sprfast.kernels.triton import one_launch
from sprfast.kernels.triton.launch import UnsupportedError, recorded
from sprfast.lowering.fold import fold
from support.bound_pass import Pass, convolve, inputs
from support.simulated_cuda import python

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the CUDA device")


@torch.inference_mode()
def test_a_bound_pass_gives_the_same_bits_in_new_memory():
    function = Pass()
    bound = LaunchList(function, inputs(seed=0), convolve)
    first = bound(*inputs(seed=1))
    kept = first.clone()
    assert torch.equal(bound(*inputs(seed=2)), function(convolve, *inputs(seed=2)))
    assert torch.equal(first, kept)
    assert torch.equal(first, function(convolve, *inputs(seed=1)))


@torch.inference_mode()
def test_a_bound_pass_takes_inputs_that_lie_inside_other_memory():
    x, z, rows, columns = inputs(seed=1)
    bound = LaunchList(Pass(), (x, z, rows, columns), convolve)
    elsewhere = torch.cat([torch.full_like(z, torch.nan), z])[2:]
    assert elsewhere.storage_offset()
    assert torch.equal(bound(x, elsewhere, rows, columns), bound(x, z, rows, columns))


def test_threads_share_a_bound_pass():
    function = Pass()

    @torch.inference_mode()
    def run(seed):
        return bound(*inputs(seed))

    with torch.inference_mode():
        bound = LaunchList(function, inputs(seed=0), convolve)
        expected = [function(convolve, *inputs(seed)) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for got, maps in zip(pool.map(run, range(4)), expected, strict=True):
            assert torch.equal(got, maps)


@pytest.mark.parametrize(
    ("storage", "count", "noises", "size"),
    [
        pytest.param(torch.float32, 2, 1, (17, 18), id="padded"),
        pytest.param(torch.float16, 1, 1, (48, 40), id="two-pass-norms"),
    ],
)
@pytest.mark.interpreter
@torch.inference_mode()
def test_the_bound_network_equals_the_network_bit_for_bit(small_model, storage, count, noises, size):
    network = triton_backend.FusedUNet(fold(small_model), CPU, storage)
    blank = network.blank(count, *size, noises)
    bound = network.bind(*blank, network.empty_noise(blank[1]))
    for _ in range(2):
        x, z = (torch.randn_like(each) for each in blank)
        noise = network.empty_noise(z)
        network.convolve_noise(z, noise)
        assert all(map(torch.equal, bound(x, z, noise), network.maps(x, z)))


@pytest.mark.interpreter
@torch.inference_mode()
def test_norms_in_one_launch_and_in_two_give_the_same_maps(small_model, monkeypatch):
    network = triton_backend.FusedUNet(fold(small_model), CPU, torch.float16)
    x, z = (torch.randn_like(each) for each in network.blank(1, 34, 32))
    once = network.maps(x, z)
    assert {"norm_swish", "norm_swish_pool", "norm_swish_head"} <= launched(network, x, z)
    monkeypatch.setattr(one_launch, "unsupported", lambda raw: "not here")
    assert all(map(torch.equal, network.maps(x, z), once))
    assert not {"norm_swish", "norm_swish_pool", "norm_swish_head"} & launched(network, x, z)


def launched(network, x, z):
    """Names of the kernels of a pass."""
    with recorded(90) as launches:
        network.maps(x, z)
    return {each.name for each in launches}


@torch.inference_mode()
def test_the_result_of_a_convolution_is_freed_after_its_last_reader():
    alive, results = [], []

    def watched(x, weight):
        alive.append([result() is not None for result in results])
        out = convolve(x, weight)
        results.append(weakref.ref(out))
        return out

    def chain(convolve, x):
        raw = convolve(x, weight)
        raw = convolve(raw, weight)
        raw = convolve(raw, weight)
        return torch.empty(1)

    weight = torch.zeros(16, 16, 3, 3)
    LaunchList(chain, inputs(0)[:1], watched)(inputs(0)[0])
    assert alive == [[], [True], [False, True]]
    assert [result() is None for result in results] == [True, True, True]


@torch.inference_mode()
def test_what_a_list_would_leave_out_is_refused():
    zeros = torch.zeros(1, device="meta")

    def computes(convolve, x):
        return x + 1

    def adds_memory_of_its_own(convolve, x):
        convolve(x, torch.zeros(16, 16, 3, 3))
        return zeros

    with pytest.raises(RuntimeError, match=r"aten\.add.*outside of a launch"):
        LaunchList(computes, inputs(0)[:1], convolve)
    with pytest.raises(RuntimeError, match=r"aten\.zeros.*outside of a launch"):
        LaunchList(adds_memory_of_its_own, inputs(0)[:1], convolve)


@torch.inference_mode()
def test_a_convolution_in_another_layout_is_refused():
    bound = LaunchList(Pass(), inputs(0), lambda x, weight: convolve(x, weight).contiguous())
    with pytest.raises(UnsupportedError, match="expected channels-last"):
        bound(*inputs(0))


@pytest.mark.compile
def test_later_calls_start_the_compiled_kernels_with_the_addresses_of_the_call(tmp_path):
    """On a stand-in for the driver: what the second call launches is what the first did."""
    python(
        """
        import sys; sys.path.insert(0, "tests")
        import torch
        from support import simulated_triton
        from support.bound_pass import Pass, inputs
        from sprfast.backends.launch_list import LaunchList
        from sprfast.kernels.triton import launch

        memory = {}  # results of convolutions, the same in all calls

        def convolve(x, weight):
            convolved.append(x.data_ptr())
            return memory.setdefault(len(convolved), torch.empty(2, 16, 6, 6, memory_format=torch.channels_last))

        def call(given):
            # every launch, its addresses as numbers by their first use; the inputs by their names
            simulated_triton.launches.clear()
            convolved.clear()
            bound(*given)
            known = {x.data_ptr(): name for name, x in zip(("x", "z", "rows", "columns"), given)}
            number = lambda address: known.setdefault(address, len(known))
            return [(*rest, [number(each) for each in addresses], others)
                    for *rest, addresses, others in simulated_triton.launches], number(convolved[0])

        convolved = []
        with torch.inference_mode():
            bound = LaunchList(Pass(), inputs(0), convolve)
            first = call(inputs(1))
            launch.Launch.run = None  # nothing is built again
            assert call(inputs(2)) == first
        assert first[1] == "x"
        names = [name for name, *_ in first[0]]
        assert names.count("_affine_swish_kernel") == names.count("_matmul_kernel") == 2, names
        assert {"z", "rows", "columns"} < {each for *_, addresses, _ in first[0] for each in addresses}
        """,
        TRITON_CACHE_DIR=str(tmp_path),
    )
