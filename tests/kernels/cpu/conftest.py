import dataclasses

import pytest

import sprfast
from sprfast.deploy import export
from sprfast.deploy.export import Request
from sprfast.errors import ModelFileError
from sprfast.formats import export as export_file
from sprfast.kernels.cpu import library
from support import c_interface
from support.export_reader import Opened, Reader, Sample, assert_same, write_narrow
from support.machine import NATIVE, using


@pytest.fixture(scope="session", params=["native", pytest.param("aarch64", marks=pytest.mark.build)])
def machine(request):
    """Where compiled code runs."""
    used = NATIVE if request.param == "native" else request.getfixturevalue("emulator")
    with using(used):
        yield used


@pytest.fixture(scope="session")
def reader(machine, tmp_path_factory):
    """The C++ reader."""
    return Reader(machine, tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="session")
def good(small_model, tmp_path_factory):
    """A plan as `sprfast export` writes it."""
    if library.unavailable() is not None:
        pytest.skip(library.unavailable())
    path = tmp_path_factory.mktemp("plan") / "good.plan"
    export.export(small_model, path, Request("plan"))
    return path


@pytest.fixture(scope="session")
def sample(good, tmp_path_factory):
    """A plan of a network that is narrower than it says, so that its file is small."""
    folder = tmp_path_factory.mktemp("damaged")
    write_narrow(folder / "good.plan", export_file.read(good).metadata)
    return Sample(folder / "good.plan", folder / "bad.plan")


@pytest.fixture
def both(reader, sample):
    """What both readers make of a content: they must agree. None where it is accepted, else the C++
    reader's reason.
    """

    def outcome(content, same=False):
        sample.work.write_bytes(content)
        reason, read = reader.refusal(sample.work), None
        try:
            read = export_file.read(sample.work)
        except ModelFileError as error:
            python_reason = str(error)
        if read is None:
            assert reason is not None, f"only Python refuses it: {python_reason}"
            return reason
        with reader.opened(sample.work) as opened:
            assert isinstance(opened, Opened), f"only C++ refuses it: {reason}"
            assert_same(opened, read)
        assert not same or read.metadata.to_json() == export_file.read(sample.path).metadata.to_json()
        return None

    with reader.narrow():
        yield outcome


@pytest.fixture(scope="session")
def c_library(machine):
    """The functions of include/sprfast.h."""
    return c_interface.Library(machine.path)


@pytest.fixture(scope="session")
def engine(c_library, good):
    engine = c_library.open(good, threads=1)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def runner(good):
    return sprfast.load(good, threads=1)


@pytest.fixture
def written(small_model, c_library, tmp_path):
    """Writes an export of the small model with other values, and opens it in C and in Python."""
    opened = []

    def write(**values):
        path = tmp_path / f"{len(opened)}.plan"
        export.export(dataclasses.replace(small_model, **values), path, Request("plan"))
        opened.append(c_library.open(path, threads=1))
        return opened[-1], sprfast.load(path, threads=1)

    yield write
    for engine in opened:
        engine.close()
