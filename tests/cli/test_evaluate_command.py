"""The command `evaluate`."""

import json


def test_metrics_without_anomalies_are_null_with_a_reason(run, data_set, model_path):
    for folder in ("test/dent", "ground_truth/dent"):
        for path in (data_set / "bolt" / folder).iterdir():
            path.unlink()
        (data_set / "bolt" / folder).rmdir()
    code, out, _ = run("evaluate", model_path, data_set, "--category", "bolt", "--json")
    row = json.loads(out)["categories"][0]
    assert code == 0
    assert row["image_AUROC"] is None
    assert "anomal" in row["undefined"]["image_AUROC"]
