import pytest

from sprfast.errors import InputError
from sprfast.system.files import output_folder


def fail(folder, name=None):
    """A command that writes a file of this name, if any, and fails."""
    with output_folder(folder):
        assert folder.is_dir()
        if name:
            (folder / name).touch()
        raise KeyboardInterrupt


def test_a_folder_that_nothing_came_into_is_removed_with_its_parents(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fail(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_or_has_something_in_it_stays(tmp_path):
    (tmp_path / "old").mkdir()
    for folder, name in (("old", None), ("new/kept", "checkpoint")):
        with pytest.raises(KeyboardInterrupt):
            fail(tmp_path / folder, name)
    assert (tmp_path / "old").is_dir()
    assert (tmp_path / "new/kept/checkpoint").exists()
    with output_folder(tmp_path / "made"):
        pass
    assert (tmp_path / "made").is_dir()


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/models: cannot be written"), output_folder(tmp_path / "file" / "models"):
        pass
