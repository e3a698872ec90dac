"""The command `export`."""


def test_an_export_is_not_written_over_its_model(run, model_path, tmp_path):
    (tmp_path / "link").symlink_to(model_path)
    before = model_path.read_bytes()
    for output in (model_path, tmp_path / "link"):
        code, _, err = run("export", model_path, "--to", "plan", "-o", output)
        assert code == 2
        assert "is read here" in err
    assert model_path.read_bytes() == before
