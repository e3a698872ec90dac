"""Why F(4x4, 3x3) at these points: multiplications and rounding error of Winograd convolutions by
tile size and interpolation points.

`python -m sprfast.bench.core.tiles` prints the table. Convolutions of one tile position over many
channels are emulated in float32 as the CPU kernels compute them, weights transformed in float64,
and compared with float64.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

Array = npt.NDArray[np.float32]
Exact = npt.NDArray[np.float64]

CHANNELS = 256
TILES = 200
# Pairs ±p beside 0 and infinity: the usual ones of the literature, and the best of all eighths up
# to 2 for F(4x4).
CHOICES: dict[int, tuple[tuple[float, ...], ...]] = {
    2: ((1.0,),),
    4: ((1.0, 2.0), (0.5, 1.0), (0.75, 1.5), (0.625, 1.75)),
    6: ((0.5, 1.0, 2.0), (0.5, 1.0, 1.75)),
}


def matrices(tile: int, pairs: tuple[float, ...]) -> tuple[Exact, Exact, Exact]:
    """Bᵀ, G and Aᵀ of F(tile x tile, 3x3) at 0, each ±pair and infinity.

    Row i of Bᵀ holds the coefficients of the product over the other finite points of (x - point);
    row i of G the powers of point i over the product of its distances to the others; Aᵀ the powers
    of the points. (Winograd 1980; Lavin & Gray, Fast algorithms for convolutional neural networks,
    2016.)
    """
    points = [0.0, *itertools.chain.from_iterable((p, -p) for p in pairs)]
    n = tile + 2
    data, weight, result = np.zeros((n, n)), np.zeros((n, 3)), np.zeros((tile, n))
    for i, point in enumerate(points):
        others = points[:i] + points[i + 1 :]
        data[i, : n - 1] = np.polynomial.polynomial.polyfromroots(others)
        weight[i] = point ** np.arange(3) / np.prod([point - other for other in others])
        result[:, i] = point ** np.arange(tile)
    data[-1] = np.polynomial.polynomial.polyfromroots(points)
    weight[-1, 2] = result[-1, -1] = 1.0
    return data, weight, result


def error(tile: int, pairs: tuple[float, ...], seed: int = 0) -> float:
    """Relative RMS error of float32 results, summed over `CHANNELS` channels in order, for inputs
    like activations.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((TILES, CHANNELS, tile + 2, tile + 2)).astype(np.float32)
    x /= 1 + np.exp(-x)  # swish puts them to one side of zero
    g = rng.standard_normal((CHANNELS, 3, 3)).astype(np.float32)
    data, weight, result = matrices(tile, pairs)
    planes = data.astype(np.float32) @ x @ data.T.astype(np.float32)
    products = planes * (weight @ g.astype(np.float64) @ weight.T).astype(np.float32)
    return _relative_rms(
        result.astype(np.float32) @ _in_order(products) @ result.T.astype(np.float32), _exact(x, g, tile)
    )


def direct_error(seed: int = 0) -> float:
    """The same for a direct convolution."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((16 * TILES, CHANNELS * 9, 1, 1)).astype(np.float32)
    x /= 1 + np.exp(-x)
    g = rng.standard_normal((CHANNELS * 9, 1, 1)).astype(np.float32)
    return _relative_rms(_in_order(x * g), (x.astype(np.float64) * g).sum(1))


def _in_order(products: Array) -> Array:
    return np.cumsum(products, axis=1, dtype=np.float32)[:, -1]


def _exact(x: Array, g: Array, tile: int) -> Exact:
    wide = x.astype(np.float64)
    return np.asarray(
        sum(
            np.einsum("tcij,c->tij", wide[:, :, i : i + tile, j : j + tile], g[:, i, j].astype(np.float64))
            for i in range(3)
            for j in range(3)
        )
    )


def _relative_rms(got: Array, expected: Exact) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def main() -> None:
    """Prints the table."""
    table = Table("method", "points", "products / output", "weights", "RMS error")
    table.add_row("direct", "", "9.00", "1.0", f"{direct_error():.1e}")
    for tile, sets in CHOICES.items():
        planes = (tile + 2) ** 2
        for pairs in sets:
            points = ", ".join(f"±{p:g}" for p in pairs)
            measured = f"{error(tile, pairs):.1e}"
            table.add_row(
                f"F({tile}x{tile}, 3x3)", f"0, {points}, ∞", f"{planes / tile**2:.2f}", f"{planes / 9:.1f}", measured
            )
    Console().print(table)


if __name__ == "__main__":
    main()
