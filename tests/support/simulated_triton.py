"""Triton's driver where there is no GPU: kernels are compiled for sm_90, and launches are noted."""

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

launches = []  # of each: kernel, grid, stream, pointers, other arguments


class Launcher:
    """In place of the launcher that starts a compiled kernel."""

    def __init__(self, source, metadata):
        self.name = metadata.name
        self.pointers = [i for i, kind in enumerate(source.signature.values()) if str(kind).startswith("*")]

    def __call__(self, x, y, z, stream, function, kernel, launch, enter, leave, *arguments):
        addresses = [arguments[i] for i in self.pointers]
        addresses = [each if isinstance(each, int) else each.data_ptr() for each in addresses]
        others = [each for i, each in enumerate(arguments) if i not in self.pointers]
        launches.append((self.name, (x, y, z), stream, addresses, others))


class Utilities:
    """What the driver tells of a device with an H100's limits."""

    def load_binary(self, name, kernel, shared, device):
        module, function, registers, spills, threads = 1, 1, 32, 0, 1024
        return module, function, registers, spills, threads

    def get_device_properties(self, device):
        return {"max_shared_mem": 232448}


class Driver:
    """What `triton` asks of a driver to compile and launch."""

    launcher_cls, utils = Launcher, Utilities()

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


driver.set_active(Driver())
