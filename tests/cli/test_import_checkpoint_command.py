"""The command `import`."""

import torch

from sprfast.formats import model as model_file


def test_import_accepts_a_module_prefix_and_refuses_other_pickles(run, small_model, tmp_path):
    checkpoint, output = tmp_path / "a.pth", tmp_path / "a.safetensors"
    torch.save({f"module.{name}": value for name, value in small_model.weights.items()}, checkpoint)
    assert run("import", checkpoint, "-o", output)[0] == 0
    assert model_file.load(output).sha256 == small_model.sha256
    checkpoint.write_bytes(b"not a checkpoint")
    assert "exists already; give --force" in run("import", checkpoint, "-o", output)[2]
    code, _, err = run("import", checkpoint, "-o", output, "--force")
    assert code == 2
    assert "a.pth" in err
    assert model_file.load(output).sha256 == small_model.sha256
