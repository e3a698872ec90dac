"""The table of Winograd's tiles and points."""

import re

import numpy as np
import pytest

from sprfast.bench.core import tiles
from support import ROOT

KERNELS = ROOT / "kernels" / "cpu" / "transform.h"


@pytest.mark.parametrize(("tile", "pairs"), [(tile, pairs) for tile, sets in tiles.CHOICES.items() for pairs in sets])
def test_matrices_compute_the_correlation(tile, pairs):
    data, weight, result = tiles.matrices(tile, pairs)
    rng = np.random.default_rng(1)
    d, g = rng.standard_normal((tile + 2, tile + 2)), rng.standard_normal((3, 3))
    expected = [[(d[i : i + 3, j : j + 3] * g).sum() for j in range(tile)] for i in range(tile)]
    got = result @ ((weight @ g @ weight.T) * (data @ d @ data.T)) @ result.T
    np.testing.assert_allclose(got, expected, atol=1e-11)


def test_the_kernels_use_the_last_points_of_the_table_and_these_halve_the_error():
    usual, *_, chosen = tiles.CHOICES[4]
    pairs = re.search(r"POINTS\[PAIRS\] = \{(.+?), (.+?)\}", KERNELS.read_text("utf-8"))
    assert tuple(map(float, pairs.groups())) == chosen
    assert tiles.error(4, chosen) < 0.6 * tiles.error(4, usual)
    assert tiles.error(4, chosen) < 3 * tiles.direct_error()
    assert tiles.error(6, tiles.CHOICES[6][0]) > 3 * tiles.error(4, chosen)
