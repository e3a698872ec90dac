import dataclasses
import hashlib
import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from sprfast.config import Level, NetworkConfig, Preprocessing, Schedule
from sprfast.errors import InputError, ModelFileError
from sprfast.formats import model as model_file
from sprfast.formats import tensors as archive
from sprfast.formats.model import Model
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.threshold import MapThreshold, Threshold
from sprfast.method.unet import parameter_shapes
from support.scoring_mode_cases import field, with_mode, with_settings

NETWORK = NetworkConfig(32, 8)
BIAS = "outc.conv.bias"


@pytest.fixture(scope="module")
def weights():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in parameter_shapes(NETWORK).items()}


@pytest.fixture(scope="module")
def model(weights):
    return Model(
        network=NETWORK,
        scoring_mode=ScoringMode(
            Schedule((Level(1e-3, 4), Level(1e-2, 2, 0.5)), noise="antithetic"),
            threshold=Threshold(0.25, "calibrated", 99, 0.01, 99),
        ),
        preprocessing=Preprocessing(size=64, size_policy="stretch", bit_depth=12),
        weights=weights,
        noise_seed=2**32 - 1,
        provenance={"steps": 10, "data": {"images": 3}},
        certificates=({"backend": "eager", "error": 1e-7},),
    )


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    model_file.save(path, model)
    return path


def rewritten(saved, path, edit):
    """A well-signed copy of `saved` with its tensors and document edited."""
    tensors, document = archive.read(saved, kind="model")
    edit(tensors, document)
    archive.write(path, tensors, document, kind="model")
    return path


def test_round_trip(model, saved):
    got = model_file.load(saved)
    for each in dataclasses.fields(Model):
        if each.name != "weights":
            assert getattr(got, each.name) == getattr(model, each.name), each.name
    assert got.sha256 == model.sha256
    assert all(torch.equal(got.weights[name], model.weights[name]) for name in model.weights)


def test_without_threshold(model, tmp_path):
    model_file.save(tmp_path / "a", with_mode(model, threshold=None))
    assert model_file.load(tmp_path / "a").scoring_mode.threshold is None


def test_sha256_names_the_weights_and_nothing_else(model):
    digest = hashlib.sha256()
    for name, tensor in sorted(model.weights.items()):
        digest.update(name.encode() + tensor.numpy().astype("<f4").tobytes())
    assert model.sha256 == digest.hexdigest()
    assert dataclasses.replace(with_mode(model, threshold=None), noise_seed=0).sha256 == model.sha256
    other = {**model.weights, BIAS: model.weights[BIAS] + 1}
    assert dataclasses.replace(model, weights=other).sha256 != model.sha256


def test_flipped_bits_in_a_model_file_are_noticed(saved, tmp_path):
    content = saved.read_bytes()
    for position in (3, 40, 5000, len(content) // 2, len(content) - 1):
        damaged = bytearray(content)
        damaged[position] ^= 16
        (tmp_path / "a").write_bytes(damaged)
        with pytest.raises(ModelFileError, match=str(tmp_path / "a")):
            model_file.load(tmp_path / "a")


WRONG_WEIGHTS = {
    "missing": (lambda tensors: tensors.pop(BIAS), f"{BIAS}' is missing"),
    "extra": (
        lambda tensors: tensors.update({"../../etc/x": torch.ones(1)}),
        r"'\.\./\.\./etc/x' is not one of the network",
    ),
    "shape": (lambda tensors: tensors.update({BIAS: torch.ones(4)}), rf"{BIAS}' has shape \(4,\), expected \(3,\)"),
    "float64": (
        lambda tensors: tensors.update({BIAS: torch.ones(3, dtype=torch.float64)}),
        "is float64, expected float32",
    ),
    "float16": (
        lambda tensors: tensors.update({BIAS: torch.ones(3, dtype=torch.float16)}),
        "is float16, expected float32",
    ),
}


@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_wrong_weights_are_refused_in_a_model_file_and_a_checkpoint(case, saved, weights, tmp_path):
    edit, match = WRONG_WEIGHTS[case]
    with pytest.raises(ModelFileError, match=match):
        model_file.load(rewritten(saved, tmp_path / "a", lambda tensors, document: edit(tensors)))
    state = dict(weights)
    edit(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ModelFileError, match=match):
        model_file.import_checkpoint(tmp_path / "a.pth")


DOCUMENT_EDITS = {
    "missing field": (lambda document: document.pop("schedule"), "'schedule' is missing"),
    "network of another size": (lambda document: document["network"].update(base_width=64), "has shape"),
    "width out of range": (lambda document: document["network"].update(base_width=10**60), "base_width"),
    "mistyped field": (lambda document: document["preprocessing"].update(size="64"), "size"),
    "t out of range": (lambda document: document["schedule"]["levels"][0].update(t=2), "t: 2"),
    "no levels": (lambda document: document["schedule"].update(levels=[]), "levels"),
    "threshold not an object": (lambda document: document.update(threshold=0.5), "Threshold"),
    "seed out of range": (lambda document: document.update(noise_seed=-1), "noise_seed"),
    "boolean seed": (lambda document: document.update(noise_seed=True), "noise_seed"),
    "certificate not an object": (lambda document: document.update(certificates=["passed"]), "certificates"),
    "provenance not an object": (lambda document: document.update(provenance=[]), "provenance"),
}


@pytest.mark.parametrize("case", DOCUMENT_EDITS)
def test_a_bad_document_is_a_model_file_error(case, saved, tmp_path):
    edit, match = DOCUMENT_EDITS[case]
    path = rewritten(saved, tmp_path / "a", lambda tensors, document: edit(document))
    with pytest.raises(ModelFileError, match=match) as caught:
        model_file.load(path)
    assert str(path) in str(caught.value)


def test_unknown_optional_fields_are_ignored(model, saved, tmp_path):
    def edit(tensors, document):
        document["colour"] = "blue"
        document["preprocessing"]["sharpen"] = False

    assert model_file.load(rewritten(saved, tmp_path / "a", edit)).preprocessing == model.preprocessing


def test_a_checkpoint_of_a_training_is_not_a_model(tmp_path):
    archive.write(tmp_path / "a", {}, {}, kind="checkpoint")
    with pytest.raises(ModelFileError, match="is a 'checkpoint' file, expected a 'model' file"):
        model_file.load(tmp_path / "a")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(model, weights, tmp_path, value):
    bad = {**weights, BIAS: torch.tensor([0, value, 0])}
    with pytest.raises(InputError, match=f"{BIAS}' holds NaN or infinity"):
        dataclasses.replace(model, weights=bad)
    torch.save(bad, tmp_path / "a.pth")
    with pytest.raises(ModelFileError, match=f"{BIAS}' holds NaN or infinity"):
        model_file.import_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(("prefix", "zipped"), [("", True), ("module.", True), ("module.", False)])
def test_published_checkpoints_are_imported(weights, tmp_path, prefix, zipped):
    path = tmp_path / "authors.pth"
    state = {prefix + name: torch.nn.Parameter(tensor) for name, tensor in weights.items()}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    got = model_file.import_checkpoint(path, preprocessing=Preprocessing(size=128))
    assert got.network == NETWORK
    assert got.schedule == Schedule()
    assert got.preprocessing.size == 128
    assert got.scoring_mode.threshold is None
    assert got.provenance == {"imported_from": "authors.pth", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert got.weights.keys() == weights.keys()
    assert all(
        torch.equal(got.weights[name], weights[name]) and not got.weights[name].requires_grad for name in weights
    )


def test_weights_that_share_memory_can_be_imported_and_saved(weights, tmp_path):
    ones = torch.ones(1)
    state = {name: ones.expand(tensor.shape) if tensor.ndim == 1 else tensor for name, tensor in weights.items()}
    torch.save(state, tmp_path / "a.pth")
    got = model_file.import_checkpoint(tmp_path / "a.pth")
    model_file.save(tmp_path / "a", got)
    assert model_file.load(tmp_path / "a").sha256 == got.sha256


class Payload:
    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (self.proof,)


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle", "inside"])
def test_pickle_payload_is_refused_and_never_run(form, weights, tmp_path):
    proof, path = tmp_path / "proof", tmp_path / "evil.pth"
    payload = Payload(proof)
    if form == "pickle":
        path.write_bytes(pickle.dumps(payload, protocol=2))
    else:
        torch.save(
            {**weights, BIAS: payload} if form == "inside" else payload,
            path,
            _use_new_zipfile_serialization=form != "legacy",
        )
    with pytest.raises(ModelFileError, match="never loaded") as caught:
        model_file.import_checkpoint(path)
    assert "weights_only" not in str(caught.value)
    assert not proof.exists()
    pickle.loads(pickle.dumps(payload, protocol=2))
    assert proof.exists(), "the payload must be a live one for this test to mean anything"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([torch.ones(1)], "holds list, expected a state dict"),
        ({"epoch": 3}, "'epoch' is int, expected a dense tensor"),
        ({"model": {"w": torch.ones(1)}}, "'model' is dict, expected a dense tensor"),
        ({7: torch.ones(1)}, "key 7"),
        ({"w": torch.ones(2, 2).to_sparse()}, "'w' is Tensor, expected a dense tensor"),
        ({"w": torch.empty(2, device="meta")}, "'w' is Tensor, expected a dense tensor"),
        ({}, r"inc\.double_conv\.0\.weight"),
        ({"inc.double_conv.0.weight": torch.tensor(1.0)}, r"inc\.double_conv\.0\.weight"),
        ({"inc.double_conv.0.weight": torch.ones(33, 1), "embed.0.W": torch.ones(4)}, "base_width"),
        (
            {"module.inc.double_conv.0.weight": torch.ones(32, 1), "embed.0.W": torch.ones(4)},
            r"inc\.double_conv\.0\.weight",
        ),
    ],
)
def test_other_contents_of_a_checkpoint_are_refused(tmp_path, content, match):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ModelFileError, match=match) as caught:
        model_file.import_checkpoint(tmp_path / "a.pth")
    assert str(tmp_path / "a.pth") in str(caught.value)


def test_damaged_checkpoints_are_refused(weights, tmp_path):
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    content, path = buffer.getvalue(), tmp_path / "a.pth"
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (b"", b"PK", b"not a checkpoint", content[: len(content) // 2], content[:-1], bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(ModelFileError, match=r"a\.pth: ") as caught:
            model_file.import_checkpoint(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelFileError, match="no such file"):
        model_file.import_checkpoint(tmp_path / "absent.pth")


def test_zip_members_that_lead_out_of_the_folder_are_never_written(weights, tmp_path):
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    torch.save(weights, folder / "a.pth")
    with zipfile.ZipFile(folder / "a.pth", "a") as file:
        file.writestr("../../proof", b"x")
        file.writestr(str(tmp_path / "absolute"), b"x")
    with pytest.raises(ModelFileError, match=r"a\.pth"):
        model_file.import_checkpoint(folder / "a.pth")
    assert [item.name for item in tmp_path.iterdir()] == ["deep"]
    assert [item.name for item in folder.iterdir()] == ["a.pth"]


@pytest.fixture(scope="module")
def with_all(model):
    """The model with something in every field that a setting has."""
    return with_mode(with_settings(model), error_field=field(40, 24, seed=1), map_threshold=MapThreshold(0.5, 30, 0.1))


def test_settings_come_back_bit_for_bit(with_all, tmp_path):
    model_file.save(tmp_path / "a", with_all)
    got = model_file.load(tmp_path / "a")
    assert got.scoring_mode == with_all.scoring_mode
    assert got.scoring_modes == with_all.scoring_modes
    assert got.sha256 == with_all.sha256  # which names the weights and nothing else
    model_file.save(tmp_path / "b", got)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_setting_is_used_by_its_name(with_all, model):
    assert with_all.using("published") is with_all
    used = with_all.using("quick")
    assert used.scoring_mode == with_all.scoring_modes["quick"]
    assert used.sha256 == with_all.sha256
    assert model.scoring_modes == {}


def test_a_name_that_is_no_setting_is_an_input_error_in_one_sentence(with_all, model):
    with pytest.raises(InputError, match=r"^setting 'fast': the model has published, quick; `[a-z -]+` adds one$"):
        with_all.using("fast")
    with pytest.raises(InputError, match="the model has published;"):
        model.using("quick")
    with pytest.raises(InputError) as caught:
        with_all.using("x\n" * 1000)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_file_that_holds_a_cascade_loads_and_says_that_the_mode_is_gone(with_all, tmp_path):
    model_file.save(tmp_path / "good", with_all)
    stored = {"first": "quick", "second": "published", "first_scale": 1.0, "low": 0.95, "high": 1.05}
    path = rewritten(
        tmp_path / "good", tmp_path / "a", lambda tensors, document: document["cascades"].update(cascade=stored)
    )
    got = model_file.load(path)
    assert got.scoring_modes.keys() == {"quick"}
    with pytest.raises(
        InputError, match=r"^setting 'cascade': this mode is gone; use 'single' or 'published' instead$"
    ):
        got.using("cascade")
    model_file.save(path, got)
    assert path.read_bytes() == (tmp_path / "good").read_bytes()


SETTING_EDITS = {
    "field of another size": (lambda document: document["field"].update(shape=[40, 25]), "error field"),
    "field of zeros": (
        lambda document: document["field"].update(expected="AAAA" * 1280),
        "error field: expected finite, positive",
    ),
    "field cut off": (
        lambda document: document["field"].update(expected=document["field"]["expected"][:-8]),
        "error field",
    ),
    "field of no image": (lambda document: document["field"].update(samples=0), "samples"),
    "field not an object": (lambda document: document.update(field=[]), "error field"),
    "map threshold out of range": (
        lambda document: document["map_threshold"].update(false_pixel_rate=0),
        "false_pixel_rate",
    ),
    "settings not an object": (lambda document: document.update(settings=[]), "'settings' is list"),
    "setting not an object": (
        lambda document: document["settings"].update(quick=5),
        "setting: expected an object, got int",
    ),
    "setting without a schedule": (lambda document: document["settings"]["quick"].pop("schedule"), "Schedule"),
    "setting with a bad field": (
        lambda document: document["settings"]["quick"]["field"].update(expected="?"),
        "error field",
    ),
    "setting of unknown noise": (
        lambda document: document["settings"]["quick"]["schedule"].update(noise="pink"),
        "noise",
    ),
}


@pytest.mark.parametrize("case", SETTING_EDITS)
def test_a_bad_setting_is_a_model_file_error_that_names_the_file(case, with_all, tmp_path):
    edit, match = SETTING_EDITS[case]
    model_file.save(tmp_path / "good", with_all)
    path = rewritten(tmp_path / "good", tmp_path / "a", lambda tensors, document: edit(document))
    with pytest.raises(ModelFileError, match=match) as caught:
        model_file.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("antithetic", "noise"), [(True, "antithetic"), (False, "gaussian")])
def test_a_file_of_format_1_loads_with_its_noise_and_without_settings(
    model, saved, tmp_path, monkeypatch, antithetic, noise
):
    tensors, document = archive.read(saved, kind="model")
    for name in ("settings", "cascades", "field", "map_threshold", "window", "tile"):
        del document[name]
    del document["schedule"]["noise"]
    document["schedule"]["antithetic"] = antithetic
    with monkeypatch.context() as patch:
        patch.setattr(archive, "FORMAT_VERSION", 1)
        archive.write(tmp_path / "a", tensors, document, kind="model")
    got = model_file.load(tmp_path / "a")
    assert got.schedule == dataclasses.replace(model.schedule, noise=noise)
    assert got.scoring_mode == ScoringMode(got.schedule, None, model.scoring_mode.threshold, None)
    assert got.scoring_modes == {}
    assert got.sha256 == model.sha256
