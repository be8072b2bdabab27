import sys

import numpy as np
import pytest

from keras_cdiff.evaluation import distances
from keras_cdiff.evaluation.precision_recall import CONVENTIONS, _squared_radii
from keras_cdiff.evaluation.precision_recall import precision_recall as measure

pytestmark = pytest.mark.backend_free

RNG = np.random.default_rng(0)

# The package has a function of this name.
MODULE = sys.modules[measure.__module__]


def brute_force(real, generated, k):
    """Precision and recall from their definition, in float64."""

    def squared(a, b):
        a, b = a.astype(np.float64), b.astype(np.float64)
        return np.stack([np.square(row - b).sum(axis=1) for row in a])

    def radii(z):
        return np.sort(squared(z, z), axis=1)[:, k]  # the point itself is at 0, one of the smallest

    between = squared(real, generated)
    precision = (between <= radii(real)[:, None]).any(axis=0).mean()
    return precision, (between <= radii(generated)).any(axis=1).mean()


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles, balls and decisions so small that every loop is run through several times."""
    for name, value in {"_TILE": 37, "_BALLS": 3, "_MAX_OPEN": 20}.items():
        monkeypatch.setattr(MODULE, name, value)
    monkeypatch.setattr(distances, "_STRIP_ROWS", 11)
    monkeypatch.setattr(distances, "_CHUNK_ELEMENTS", 100)


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("case", ["pr", "pr_small"])
def test_matches_other_tools(golden, case, k):
    data = golden("metrics")
    real, generated = data["in/ref"], data["in/gen"]
    if case == "pr_small":
        real, generated = real[:50], generated[:60]
    exact = measure(real, generated, k)
    for tool in ("own_f64", "guided_fp32", "torch_fidelity"):
        np.testing.assert_allclose(exact, data[f"out/{case}/{tool}/k{k}"][:2], rtol=1e-7)
    adm = measure(real, generated, k, convention="adm")
    np.testing.assert_allclose(adm, data[f"out/{case}/guided_fp16/k{k}"], rtol=1e-12)


@pytest.mark.parametrize("k", [3, 5])
def test_radii_are_those_of_guided_diffusion(golden, k):
    data = golden("metrics")
    for points, name in zip(
        distances.around(data["in/ref"], data["in/gen"]), ("ref", "gen"), strict=True
    ):
        radii = _squared_radii(points, k) / points.scale**2
        expected = data[f"out/pr/guided_fp32/radii_{name}_k{k}"]
        np.testing.assert_allclose(radii, expected, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 3, 39])
def test_tiles_do_not_matter(small_tiles, golden, k):
    real, generated = golden("metrics")["in/ref"][:90], golden("metrics")["in/gen"][:40]
    assert measure(real, generated, k) == brute_force(real, generated, k)
    assert measure(generated, real, k) == brute_force(generated, real, k)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("width", [1, 2, 9])
def test_ties_are_decided_as_in_float64(small_tiles, dtype, width):
    """On a lattice, with duplicates, many points lie exactly on the surface of a ball."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        real, generated = rng.integers(0, 4, (70, width)), rng.integers(1, 6, (60, width))
        real, generated = (points.astype(dtype) + dtype(0.1) for points in (real, generated))
        assert measure(real, generated, 2) == brute_force(real, generated, 2)


@pytest.mark.parametrize("offset", [1e3, 1e6])
def test_sets_far_from_the_origin_keep_their_digits(small_tiles, offset):
    """In float32 |x|^2 alone has an error of more than all the distances."""
    real, generated = RNG.normal(size=(80, 6)) + offset, RNG.normal(size=(70, 6)) + offset
    assert measure(real, generated) == brute_force(real, generated, 3)
    narrow = real.astype(np.float32), generated.astype(np.float32)
    assert measure(*narrow) == brute_force(*narrow, 3)


def test_pairs_that_float32_cannot_tell_apart(small_tiles):
    """Each generated point lies on, or 1e-12 inside or outside, the surface of a ball."""
    real = RNG.normal(size=(60, 5))
    order = np.sort(((real[:, None] - real) ** 2).sum(axis=-1), axis=1)
    directions = RNG.normal(size=(60, 5))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    shift = 1 + 1e-12 * RNG.integers(-1, 2, (60, 1))
    generated = real + directions * np.sqrt(order[:, 1:2]) * shift
    for k in (1, 2):
        assert measure(real, generated, k) == brute_force(real, generated, k)
    assert measure(100 + real, 100 + generated, 1) == brute_force(100 + real, 100 + generated, 1)


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e120])
def test_scale_does_not_matter(scale):
    real, generated = RNG.normal(size=(50, 4)), RNG.normal(0.5, 1, (40, 4))
    expected = brute_force(real, generated, 3)
    assert measure(real * scale, generated * scale) == expected
    if 1e-35 < scale < 1e35:
        assert measure(
            (real * scale).astype(np.float32), (generated * scale).astype(np.float32)
        ) == brute_force(real.astype(np.float32), generated.astype(np.float32), 3)


def test_an_outlier_does_not_matter(small_tiles):
    real, generated = RNG.normal(size=(50, 4)), RNG.normal(0.5, 1, (40, 4))
    real[7] = 1e9
    assert measure(real, generated) == brute_force(real, generated, 3)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_identical_and_distant_sets(convention):
    points = RNG.random((40, 8), dtype=np.float32)
    assert measure(points, points.copy(), convention=convention) == (1.0, 1.0)
    assert measure(points, points[::-1], convention=convention) == (1.0, 1.0)
    assert measure(points, points + 50, convention=convention) == (0.0, 0.0)


def test_constant_sets():
    constant, other = np.full((30, 5), 0.3, np.float32), RNG.random((30, 5), dtype=np.float32)
    assert measure(constant, constant.copy()) == (1.0, 1.0)
    assert measure(constant, constant + 1) == (0.0, 0.0)
    assert measure(constant, other) == brute_force(constant, other, 3)
    assert measure(other, constant) == brute_force(other, constant, 3)


def test_copies_cost_little(monkeypatch):
    """1,500 copies of one real image: its many balls of radius 0 are not all measured."""
    real = RNG.random((60, 5), dtype=np.float32)
    measured = []
    exact = distances.Points.exact

    def count(self, rows, other, other_rows):
        measured.append(len(rows))
        return exact(self, rows, other, other_rows)

    monkeypatch.setattr(distances.Points, "exact", count)
    assert measure(real, np.repeat(real[:1], 1500, axis=0)) == (1.0, 1 / 60)
    assert sum(measured) < 10_000


@pytest.mark.parametrize("noise", [0, 1e-6, 1e-4])
@pytest.mark.parametrize("modes", [1, 3])
@pytest.mark.parametrize("both", [False, True])
def test_collapsed_sets_cost_little(monkeypatch, noise, modes, both):
    """Near copies of few real images, which float32 around the mean cannot tell apart."""
    rng = np.random.default_rng(0)
    real = rng.random((60, 8), dtype=np.float32)
    sets = [
        (np.tile(real[:modes], (600 // modes, 1)) + noise * rng.normal(size=(600, 8))).astype("f4")
        for _ in range(2)
    ]
    real = np.concatenate([real, sets[1]]) if both else real
    measured = []
    exact = distances.Points.exact

    def count(self, rows, other, other_rows):
        measured.append(len(rows))
        return exact(self, rows, other, other_rows)

    monkeypatch.setattr(distances.Points, "exact", count)
    assert measure(real, sets[0]) == brute_force(real, sets[0], 3)
    assert sum(measured) < 60_000  # of 360,000 pairs
    assert max(measured) < 10_000  # a bound of memory


def test_collapse_lowers_recall_and_noise_lowers_precision():
    real = RNG.normal(size=(300, 3))
    collapsed = real[:100] * 0.2
    precision, recall = measure(real, collapsed)
    assert precision > 0.95
    assert recall < 0.5
    precision, recall = measure(real, 5 * RNG.normal(size=(300, 3)))
    assert precision < 0.5


def test_memory_maps_and_mixed_dtypes(tmp_path, golden):
    real, generated = golden("metrics")["in/ref"], golden("metrics")["in/gen"]
    np.save(tmp_path / "real.npy", real)
    mapped = np.load(tmp_path / "real.npy", mmap_mode="r")
    expected = brute_force(real, generated, 3)
    assert measure(mapped, generated.astype(np.float64)) == expected


def test_adm_rounds_to_float16_unless_it_overflows():
    x, y = RNG.random((6, 5), dtype=np.float32), RNG.random((4, 5), dtype=np.float32)
    exact = ((x[:, None].astype(np.float64) - y) ** 2).sum(axis=-1)
    tile = distances.float16_squared_distances(x, y)
    np.testing.assert_array_equal(tile, tile.astype(np.float16))
    np.testing.assert_allclose(tile, exact, atol=8e-3)
    large = distances.float16_squared_distances(300 * x, 300 * y)
    np.testing.assert_allclose(large, 9e4 * exact, rtol=1e-4)


def test_adm_tiles_do_not_matter(monkeypatch, golden):
    real, generated = golden("metrics")["in/ref"][:90], golden("metrics")["in/gen"][:80]
    expected = measure(real, generated, convention="adm")
    monkeypatch.setattr(MODULE, "_ADM_TILE", 23)
    assert measure(real, generated, convention="adm") == expected


@pytest.mark.parametrize("shape", [(40, 30), (500, 2000)])
def test_error_of_a_tile_is_within_its_bound(shape):
    """Points on their balls: the bound holds, and is not so wide as to leave all open."""
    (points,) = distances.around(RNG.gamma(1.0, size=shape).astype(np.float32))
    every = np.arange(len(points))
    tile = distances.squared_distances(points[every], points.norms, points[every], points.norms)
    for shift in (1, 7):
        other = np.roll(every, shift)
        exact = points.exact(every, points, other)
        error = np.abs(tile[every, other] - exact)
        bound = points.tolerance(exact)
        assert (error <= bound).all()
        assert (bound < 2e-3 * exact).all()


def test_k_smallest_by_brute_force():
    values = RNG.random((9, 50), dtype=np.float32)
    kept = np.full((9, 4), np.inf, np.float32)
    for columns in ([0, 1, 2], range(3, 5), range(5, 50)):
        distances.keep_smallest(kept, values[:, columns])
    np.testing.assert_array_equal(np.sort(kept, axis=1), np.sort(values, axis=1)[:, :4])
    np.testing.assert_array_equal(kept[:, -1], kept.max(axis=1))


@pytest.mark.parametrize(
    "bad", [{"k": 0}, {"k": 6}, {"k": 2.0}, {"k": True}, {"convention": "float16"}]
)
def test_bad_arguments_are_refused(bad):
    with pytest.raises(ValueError, match=f"Received: {next(iter(bad))}="):
        measure(RNG.random((9, 2)), RNG.random((6, 2)), **bad)
