"""The command `parity`, and precisions and backends that it takes."""

import hashlib
import json

import numpy as np

from support import ROOT


def test_parity_exits_1_beyond_tolerance(run, model_path, pictures, golden_folder, tmp_path):
    code, out, _ = run("parity", model_path, "--images", pictures[0].parent, "--json")
    assert code == 0
    assert json.loads(out)["passed"] is True
    damaged = tmp_path / "golden"
    damaged.mkdir()
    document = json.loads((golden_folder / "golden.json").read_text())
    document["cases"] = {"tiny_32": document["cases"]["tiny_32"]}
    arrays = dict(np.load(golden_folder / "tiny_32.npz"))
    arrays["error_map"] = arrays["error_map"] * 1.0001
    np.savez(damaged / "tiny_32.npz", **arrays)
    document["cases"]["tiny_32"]["sha256"] = hashlib.sha256((damaged / "tiny_32.npz").read_bytes()).hexdigest()
    (damaged / "golden.json").write_text(json.dumps(document))
    code, out, _ = run("parity", "--golden", damaged)
    assert code == 1
    assert "FAILED" in out


def test_precision_and_backend_reach_the_engine(run, model_path, pictures):
    assert "bfloat16" in run("predict", model_path, *pictures, "--precision", "bfloat16")[2]  # eager refuses
    assert run("predict", model_path, *pictures, "--precision", "fp8")[0] == 2
    assert (
        run("parity", model_path, "--images", pictures[0].parent, "--backend", "eager", "--precision", "float16")[0]
        == 3
    )
    code, _, err = run(
        "parity", "--golden", ROOT / "tests" / "data" / "golden", "--backend", "eager", "--precision", "bfloat16"
    )
    assert code == 3
    assert "eager: computes in float32" in err
