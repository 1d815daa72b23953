"""The half-moons example in small: that its numbers are those of its samples, and that its page says what was measured."""

import json
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("ot")

import halfbridge as hb
from halfbridge.training.data.points import labelled_moons

EXAMPLES = Path(__file__).parent.parent / "examples"
SEED = 3


@pytest.fixture(scope="module")
def modules():
    """The example's modules, imported as the script imports them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import half_moons
        from moons import measures, models, pictures, report

        yield {"main": half_moons, "measures": measures, "models": models, "pictures": pictures, "report": report}


@pytest.fixture(scope="module")
def made(modules, tmp_path_factory):
    """(out, runs, settings, results)."""
    folder = tmp_path_factory.mktemp("moons")
    settings = modules["models"].Settings(
        examples=400, epochs=5, batch_size=100, hidden=16, depth=1, lr=1e-2, ema_decay=0.5, chain=30, levels=5, sigma_first=1.5, corrections=5,
        langevin=2e-5, samples=300, references=3, projections=20,
    )  # fmt: skip
    results = modules["main"].run(folder / "out", settings, SEED, folder / "runs", say=lambda text: None)
    return folder / "out", folder / "runs", settings, results


def test_the_measures_are_of_what_hb_sample_gives_from_the_saved_run(modules, made):
    _, runs, s, results = made
    ddpm, ncsn = modules["models"].models(s, SEED)
    other = hb.Ancestral(variance="transition")
    cases = [("DDPM", ddpm, hb.Ancestral()), ("DDPM, large variance", ddpm, other), ("NCSN", ncsn, ncsn.solver)]
    for name, model, solver in cases:
        field = hb.training.load(runs / model.name.lower()).field
        x = hb.sample(field, solver, grid=model.grid, shape=(s.samples, 2), seed=SEED)
        row = results["rows"][name]
        upper, lower = (_to_arc(x, moon) for moon in (0, 1))
        assert row["upper"] == float((upper < lower).double().mean())
        assert row["distance"] == pytest.approx(float(torch.minimum(upper, lower).mean()), abs=1e-5)
        others = [labelled_moons(s.samples, SEED + 1000 + k).points for k in range(s.references)]
        far = [hb.reference.sliced_w2(x, y, projections=s.projections) for y in others]
        assert row["sliced_w2"] == pytest.approx(math.fsum(far) / 3, rel=1e-9)
        assert row["evaluations"] == (s.levels * s.corrections + 1 if name == "NCSN" else s.chain)


def test_the_floor_is_the_distance_between_fresh_samples(made):
    _, _, s, results = made
    a, b, c = (labelled_moons(s.samples, SEED + 1000 + k).points for k in range(3))
    pairs = [hb.reference.sliced_w2(x, y, projections=s.projections) for x, y in ((a, b), (a, c), (b, c))]
    assert 0.0 < results["rows"]["fresh data"]["sliced_w2"] == pytest.approx(math.fsum(pairs) / 3, rel=1e-9)


def test_the_pages_table_is_results_json(modules, made):
    out, _, _, results = made
    assert json.loads((out / "results.json").read_text(encoding="utf-8")) == results
    page = (out / "README.md").read_text(encoding="utf-8")
    table = page[page.index("| sample") : page.index("- **sliced W2**")]
    cells = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in table.splitlines() if line
    }
    assert list(cells)[2:] == list(results["rows"])
    for name, row in results["rows"].items():
        values = [float(text.split(" ± ")[0]) for text in cells[name][:6]]
        wanted = [row["sliced_w2"], 1e3 * row["energy"], 100 * row["upper"], 1e3 * row["distance"], 100 * row["strays"],
                  row["log_density"]]  # fmt: skip
        for value, exact, digits in zip(values, wanted, (4, 2, 1, 1, 2, 3), strict=True):
            assert abs(value - exact) <= 0.5 * 10.0**-digits + 1e-12, name
    for name in ("samples.png", "paths.png", "training.png"):
        assert name in page
        assert (out / name).read_bytes()[:4] == b"\x89PNG"
    assert "--seed 3" in page


def test_the_law_is_that_of_the_data(modules):
    angle = (torch.arange(4000, dtype=torch.float64) + 0.5) * math.pi / 4000
    points = labelled_moons(500, 1, dtype=torch.float64).points
    half = torch.stack([angle.cos(), angle.sin()], dim=1)
    arcs = torch.cat([half, torch.tensor([1.0, 0.5]) - half]) - torch.tensor([0.5, 0.25])
    square = torch.cdist(points, arcs, compute_mode="donot_use_mm_for_euclid_dist").square()
    density = torch.logsumexp(-square / (2 * 0.05**2), dim=1) - math.log(8000 * 2 * math.pi * 0.05**2)
    assert torch.allclose(modules["measures"].law().log_prob(points), density, rtol=0.0, atol=1e-4)


def test_distances_are_to_the_arcs_that_noiseless_data_lie_on(modules):
    clean, labels = labelled_moons(300, 1, noise=0.0, dtype=torch.float64)
    assert float(modules["measures"].distances(clean).gather(1, labels[:, None]).max()) < 1e-12
    anywhere = 2.0 * hb.kernels.normal((300, 2), 0)
    for moon in (0, 1):
        assert torch.allclose(
            modules["measures"].distances(anywhere)[:, moon], _to_arc(anywhere, moon), rtol=0.0, atol=1e-5
        )


def test_annealed_langevin_has_the_papers_step_and_the_variance_that_the_page_states(modules):
    c, sigma, ratio = 0.3, 0.2, 0.5  # a = ratio sigma^2 at the last level
    data, process = hb.reference.Gaussian([0.7], [[c]]), hb.EDM(sigma, 1.0)
    solver = modules["models"].AnnealedLangevin(ratio * sigma**2, sigma, corrections=400)
    law = hb.reference.law_of(solver, process, [1.0, sigma, 0.0], data)
    v, a = c + sigma**2, ratio * sigma**2
    assert float(law.mean) == pytest.approx(0.7, abs=1e-6)
    assert float(law.cov) == pytest.approx((c / v) ** 2 * v / (1.0 - a / (4.0 * v)), rel=1e-6)

    one = modules["models"].AnnealedLangevin(ratio * sigma**2, sigma, corrections=1)
    x, z = torch.tensor([[0.1]], dtype=torch.float64), torch.tensor([[0.4]], dtype=torch.float64)
    at_one = ratio * 1.0**2  # a at sigma = 1: larger by (1/sigma_L)^2
    wanted = x + at_one / 2 * (0.7 - x) / (c + 1.0) + math.sqrt(at_one) * z
    assert torch.allclose(one.step(data.field(process), x, 1.0, sigma, lambda: z), wanted, rtol=0.0, atol=1e-12)


def test_the_exact_score_has_the_least_loss_and_no_excess(modules):
    process = hb.VP()
    exact = modules["measures"].law().field(process)
    for error in modules["measures"].score_errors(exact, [0.01, 0.3], 5):
        assert error.excess == 0.0
        assert error.loss == error.least
    blind = hb.Field(process, lambda t, x: torch.zeros_like(x))  # its loss is E z^2 = 1; what it lacks is E[z|x]
    for error in modules["measures"].score_errors(blind, [0.01, 0.3], 5, total=40_000):
        error_bar = 5.0 * math.sqrt(2.0 / 40_000)  # of a mean of 40 000 squares of normals
        assert error.loss == pytest.approx(1.0, abs=error_bar)
        assert error.excess == pytest.approx(error.loss - error.least, abs=2.0 * error_bar)


def _to_arc(x, moon):
    """The distance to the nearest of many points of the moon, each drawn as `moons` draws it."""
    angle = torch.linspace(0.0, math.pi, 5001, dtype=torch.float64)
    half = torch.stack([angle.cos(), angle.sin()], dim=1)
    arc = (half if moon == 0 else torch.tensor([1.0, 0.5]) - half) - torch.tensor([0.5, 0.25])
    return torch.cdist(x.double(), arc, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)
