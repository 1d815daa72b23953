"""The Gaussian bridge's example in small: that its numbers are those of its bridges, and that its page says what was measured."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("ot")

import halfbridge as hb

EXAMPLES = Path(__file__).parent.parent / "examples"
SEED = 3


@pytest.fixture(scope="module")
def modules():
    """The example's modules, imported as the script imports them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import gaussian_bridge
        from exact_bridges import affine, mixtures, relaxation, report, settings, trained

        yield {"main": gaussian_bridge, "affine": affine, "mixtures": mixtures, "relaxation": relaxation, "report": report,
               "settings": settings, "trained": trained}  # fmt: skip


@pytest.fixture(scope="module")
def made(modules, tmp_path_factory):
    """(out, results)."""
    out = tmp_path_factory.mktemp("bridge")
    return out, modules["main"].run(out, modules["settings"].QUICK, SEED, say=lambda text: None)


def test_the_page_is_written_from_results_json(modules, made):
    out, results = made
    assert json.loads((out / "results.json").read_text(encoding="utf-8")) == results
    page = (out / "README.md").read_text(encoding="utf-8")
    assert page == modules["report"].render(results)
    for name in ("departures.png", "ou.png", "coupling.png", "drifts.png", "training.png"):
        assert f"]({name})" in page
        assert (out / name).read_bytes()[:4] == b"\x89PNG"
    row = results["networks"][0]
    wanted = f"| {SEED} | {row['end']['mean']:.4f} | {100 * row['end']['cov']:.2f} % | {row['start']['mean']:.4f} | "
    assert wanted in page
    assert "not all are within" in page
    assert "python examples/gaussian_bridge.py --quick --seed 3\n" in page
    more = modules["report"].render({**results, "settings": {**results["settings"], "seeds": 2}})
    assert "gaussian_bridge.py --quick --seed 3 --seeds 2\n" in more
    for cov, verdict in ((0.0299, ": all are within"), (0.0301, ": not all are within")):
        rows = [{**row, "end": {"mean": 0.0199, "cov": 0.0299}, "start": {"mean": 0.0199, "cov": cov}}]
        assert verdict in modules["report"].render({**results, "networks": rows})


def test_the_errors_are_those_of_the_pairs_of_the_trained_bridge(modules):
    """Trained again by hand from the same seed: the same networks, the same pairs, other arithmetic."""
    trained, affine, s = modules["trained"], modules["affine"], modules["settings"].QUICK
    made, _, rows = trained.between_gaussians(2, s.networks, 500, SEED)
    star = hb.reference.GaussianBridge(*affine.ends(2), hb.OU(0.5, 1.0, 1.0)).coupling()
    for row, to, law in zip(rows, ("end", "start"), affine.ends(2), strict=True):
        x = law.sample(500, 10_000 + SEED).float()
        y = made.translate(x, 10_001 + SEED, to=to)
        z = np.concatenate([x, y] if to == "end" else [y, x], 1).astype(float)
        assert row.to == to
        assert row.mean == pytest.approx(np.abs(z.mean(0) - star.mean.numpy()).max(), rel=1e-6)
        wrong = np.cov(z.T) - star.cov.numpy()
        assert row.cov == pytest.approx(math.sqrt((wrong**2).sum() / (star.cov.numpy() ** 2).sum()), rel=1e-6)


def test_exactness_and_departures_are_what_the_page_claims(modules, made):
    """Recursions to 1e-12, the limit to 1e-9; at the bridge full matched kernels stay and all others leave by O(1/N)."""
    _, results = made
    for row in results["exact"]:
        assert max(row["fixed"], row["matched"]) < 1e-12
        assert row["limit"] < 1e-9
    kinds = results["departures"]
    assert max(max(errors) for errors in kinds["matched, full"].values()) < 1e-12
    for kind, slope in results["slopes"].items():
        assert kinds[kind]["4"][0] < 1e-12
        assert kinds[kind]["4"][1] / kinds[kind]["8"][1] == pytest.approx(2**slope, rel=1e-9)
        assert 0.8 < slope < 1.0  # 1 as N grows
    assert set(results["slopes"]) == set(kinds) - {"matched, full"}
    mean, cov = modules["affine"].truncated(2, 2)
    direct = hb.reference.gaussian_ipf(*modules["affine"].ends(2), hb.OU(0.5, 1.0, 1.0), 3, 4)[-2:]
    star = hb.reference.GaussianBridge(*modules["affine"].ends(2), hb.OU(0.5, 1.0, 1.0)).coupling()
    assert mean == pytest.approx(max(float((it.coupling().mean - star.mean).abs().max()) for it in direct), rel=1e-9)
    assert cov == pytest.approx(
        max(float((it.coupling().cov - star.cov).norm() / star.cov.norm()) for it in direct), rel=1e-9
    )


def test_the_process_rests_at_the_standard_normal_and_the_bridge_is_there_at_its_end(modules):
    """Moments of simulated paths within 5 standard errors of the exact curves, of which those of the process are solved here
    step by step."""
    alone, bridge, back = modules["relaxation"].ways(10, 4000, SEED)
    m, v, t = 2.0, 0.25, 0.0
    for k in range(1, 11):
        while t < alone.times[k] - 1e-9:  # dm = -m/2 dt, dv = (1 - v) dt, by the midpoint rule
            h = 1e-3
            m, v, t = m - h / 2 * (m - h / 4 * m), v + h * (1 - v) * (1 - h / 2), t + h
        assert alone.mean[k] == pytest.approx(m, abs=1e-6)
        assert alone.std[k] == pytest.approx(math.sqrt(v), abs=1e-6)
    assert (alone.times[-1], bridge.times[-1]) == (10.0, 1.0)
    for way in (alone, bridge, back):
        assert way.paths.shape == (11, 40)
        assert np.abs(way.mean_z).max() < 5
        assert np.abs(way.std_z).max() < 5
        k = 4
        wrong = way._replace(mean=way.mean + 0.1 * way.std)
        assert wrong.mean_z[k] == pytest.approx(way.mean_z[k] - 0.1 * math.sqrt(4000))
        assert way.std_z[k] == pytest.approx((way.found_std[k] / way.std[k] - 1.0) * math.sqrt(2 * 4000))
    for way in (bridge, back):
        np.testing.assert_allclose(
            [way.mean[0], way.std[0], way.mean[-1], way.std[-1]], [2.0, 0.5, 0.0, 1.0], atol=1e-12
        )
    r = math.exp(-0.5)  # SGM: E[x_0 | x_1] of the process, at the standard normal
    gain = 0.25 * r / (0.25 * r**2 + 1 - r**2)
    assert back.first_half[0][0] == pytest.approx(2.0 - gain * 2.0 * r, abs=1e-12)
    assert back.first_half[0][-1] == pytest.approx(0.0, abs=1e-12)


def test_bins_are_the_couplings_and_pairs_of_sinkhorns_own_are_at_the_floor(modules):
    mixtures = modules["mixtures"]
    wanted = mixtures.grid_bridge()
    p = mixtures._binned(wanted.coupling.numpy())
    assert p.sum() == pytest.approx(1.0)
    assert p[10, 20] == pytest.approx(float(wanted.coupling[40:44, 80:84].sum()))
    edges = np.arange(-4.0, 4.0 + 1e-9, 0.2)
    z = wanted.sample_paths(20_000, [0.0, 1.0], SEED)[:, :, 0].numpy()
    drawn = np.histogram2d(*z, bins=(edges, edges))[0] / 20_000
    # |drawn - p| is about sqrt(2 p/(pi n)) a bin
    assert 0.5 * np.abs(drawn - p).sum() == pytest.approx(0.5 * np.sqrt(2 * p / (np.pi * 20_000)).sum(), rel=0.15)


def test_quick_numbers_of_the_mixtures_are_those_of_the_bridge(modules, made):
    _, results = made
    m, mixtures, s = results["mixtures"], modules["mixtures"], modules["settings"].QUICK
    c = mixtures.compare(s.mixtures, s.mixture_pairs, SEED)
    assert m["variation"] == {to: c.variation(to) for to in ("end", "start")}
    assert m["floor"] == pytest.approx(0.5 * np.sqrt(2 * c.exact / (np.pi * s.mixture_pairs)).sum(), rel=0.25)
    for to, law in (("end", mixtures.LAW0), ("start", mixtures.LAW1)):
        x = law.sample(s.mixture_pairs, 10_000 + SEED).float()
        y = c.made.translate(x, 10_001 + SEED, to=to)
        pairs = (x, y) if to == "end" else (y, x)
        bins = np.histogram2d(*(v[:, 0].numpy() for v in pairs), bins=(c.edges, c.edges))[0] / s.mixture_pairs
        assert c.variation(to) == pytest.approx(0.5 * np.abs(bins - c.exact).sum())
    wanted = mixtures.grid_bridge()
    x = wanted.marginal(0.6).sample(20_000, 1)
    gap = c.made.backward_drift(0.6, x.float()) - wanted.backward_drift(0.6, x)
    found = next(d["error"] for d in m["drifts"] if (d["way"], d["t"]) == ("backward", 0.6))
    assert found == pytest.approx(
        float(gap.square().mean().sqrt()), rel=0.04
    )  # 1/sqrt(2 n) is 0.5 %, of heavy tails more
    at, _, exact = c.fixed_x0
    i = int(np.abs(at - 1.0).argmin())
    row = wanted.coupling[int((wanted.x0[:, 0] - at[i]).abs().argmin())]
    assert exact[i] == pytest.approx(float((row * wanted.x1[:, 0]).sum() / row.sum()))
