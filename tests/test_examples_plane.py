"""The example of bridges in the plane, in small: that its numbers are those of its bridges, and that its page says what was measured."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

pytest.importorskip("matplotlib")
pytest.importorskip("ot")

import halfbridge as hb
from halfbridge.training import bridge as bridges
from halfbridge.training import fit_score
from halfbridge.training.data import points

EXAMPLES = Path(__file__).parent.parent / "examples"
SEED = 3
PICTURES = ("moons", "moons_dsbm", "checkerboard", "swiss_roll", "trajectories", "monitors", "few_steps", "few_samples")


@pytest.fixture(scope="module")
def modules():
    """The example's modules, imported as the script imports them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import plane_bridges
        from plane import laws, measures, models, pictures, report, settings

        yield {
            "main": plane_bridges, "laws": laws, "measures": measures, "models": models, "pictures": pictures,
            "report": report, "settings": settings,
        }  # fmt: skip


@pytest.fixture(scope="module")
def small(modules):
    return modules["settings"].Settings(
        points=200, hidden=8, depth=1, steps=4, iterations=2, half_bridge=6, batch_size=32, lr=1e-2, ema_decay=0.5, cache_paths=32,
        coupling_size=16, monitor_paths=50, few=(3, 4), samples=60, seeds=2, projections=10, pairs=50, static_points=30,
        static_samples=2, shown=40, lines=5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(modules, small, tmp_path_factory):
    """(out, results, how many steps all optimisers took)."""
    out = tmp_path_factory.mktemp("plane") / "out"
    taken = []
    handle = register_optimizer_step_post_hook(lambda *args: taken.append(1))
    try:
        results = modules["main"].run(out, small, SEED, say=lambda text: None)
    finally:
        handle.remove()
    return out, results, len(taken)


@pytest.fixture(scope="module")
def again(modules, small):
    """The checkerboard's bridge in 3 steps, trained by the test itself."""
    torch.manual_seed(SEED)
    nets = [hb.nets.MLP(2, hidden=8, depth=1) for _ in range(2)]
    board = points.checkerboard(200, SEED)
    chain = bridges.ReferenceChain(hb.Brownian(math.sqrt(0.5), 1.0), [0.0, 0.2, 0.8, 1.0])  # variances 0.1, 0.3, 0.1
    return bridges.fit_bridge(
        *nets, board, bridges.Normal((2,)), chain, iterations=2, steps=6, batch_size=32, lr=1e-2,
        schedule="cosine", ema_decay=0.5, cache_paths=32, monitor_paths=50, seed=SEED,
    )  # fmt: skip


def test_every_row_has_had_the_same_number_of_training_steps(small, made):
    _, results, taken = made
    trained = 4 + 1 + 2 + 2  # four bridges, the one in 3 steps, a half-bridge for each N, two scores
    assert results["settings"]["training"] == small.training == 24
    assert taken == trained * small.training
    for one in results["bridges"].values():
        assert len(one["losses"]) == len(one["monitors"]) == 4


def test_the_row_of_dsb_is_of_the_backward_chain_from_the_prior(small, made, again):
    x = [hb.kernels.normal((small.samples, 2), SEED + 10_000 + k) for k in range(2)]
    ends = [bridges.simulate(again.backward, start, SEED + 10_000 + k, last_noise=False) for k, start in enumerate(x)]
    _agree(made[1]["few"]["3"]["DSB"], ends, small)


def test_the_rows_of_score_models_are_those_of_hb_sample(small, made):
    board = points.checkerboard(200, SEED)
    chain = bridges.ReferenceChain(hb.Brownian(math.sqrt(0.5), 1.0), [0.0, 0.2, 0.8, 1.0])
    cases = {
        "SGM, short": (chain.process, hb.Ancestral(), list(reversed(chain.times)), 1.0),
        "SGM, short, wide prior": (
            chain.process, hb.Ancestral(), list(reversed(chain.times)), math.sqrt(float(board.double().var(0).mean()) + 0.5),
        ),
        "SGM, long": (hb.VP(), hb.Ancestral(), hb.grids.half_log_snr(hb.VP(), 3), 1.0),
        "SGM, long, DPM-Solver++": (hb.VP(), hb.DPMSolverPP(), hb.grids.half_log_snr(hb.VP(), 3), 1.0),
    }  # fmt: skip
    fields = {}
    for name, (process, solver, grid, std) in cases.items():
        if process not in fields:
            torch.manual_seed(SEED)
            fields[process] = fit_score(
                hb.nets.MLP(2, hidden=8, depth=1), board, process, steps=small.training, batch_size=32, lr=1e-2, schedule="cosine",
                ema_decay=0.5, seed=SEED,
            ).field  # fmt: skip
        ends = []
        for k in range(2):
            start = std * hb.kernels.normal((small.samples, 2), SEED + 10_000 + k)
            with torch.no_grad():
                ends.append(hb.solve(fields[process], solver, start, grid=grid, seed=SEED + 10_000 + k).x)
        _agree(made[1]["few"]["3"][name], ends, small)


def test_monitors_and_floors_are_those_of_the_fits(made, again, modules, small):
    fit = modules["models"].bridge(modules["laws"].CHECKERBOARD, small, SEED, 3).fit
    described = modules["measures"].described(
        modules["models"].Trained(modules["laws"].CHECKERBOARD, fit, 0.0), small, SEED
    )
    assert described["floors"] == again.floors
    assert described["monitors"][0]["kl"] is None
    for row, wanted in zip(described["monitors"], again.monitors, strict=True):
        assert row["start_sliced_w2"] == pytest.approx(wanted.start_sliced_w2, rel=1e-4)
        assert row["path_energy"] == pytest.approx(wanted.path_energy, rel=1e-4)


def test_the_pages_tables_are_results_json(made):
    out, results, _ = made
    assert json.loads((out / "results.json").read_text(encoding="utf-8")) == results
    page = (out / "README.md").read_text(encoding="utf-8")
    few = _cells(page, "| sampler")
    assert list(few) == list(results["few"]["3"])
    for name, cells in few.items():
        wanted = []
        for n in ("3", "4"):
            row = results["few"][n][name]
            wanted += [(row["sliced_w2"], row["sliced_w2_se"], 4), (1e3 * row["energy"], 1e3 * row["energy_se"], 2)]
        for cell, (value, error, digits) in zip(cells, wanted, strict=True):
            assert cell == f"{value:.{digits}f} ± {error:.{digits}f}"
    couplings = _cells(page, "| coupling")
    for cells, row in zip(couplings.values(), results["couplings"].values(), strict=True):
        assert cells == [f"{row['cost']:.3f} ± {row['cost_se']:.3f}", f"{row['variation']:.3f}"]
    ends = _cells(page, "| bridge")
    for name, one in results["bridges"].items():
        rows = one["monitors"]
        for i, end in enumerate(("start", "end")):
            floor = "{:.3f} ± {:.3f}".format(*one["law_floors"][end])
            first, last = (rows[k][f"{end}_sliced_w2"] for k in (i, i + 2))
            assert ends[name][i] == f"{first:.3f} → {last:.3f} ({floor})"
        assert ends[name][2] == f"{1e3 * rows[2]['start_energy_distance']:.2f}"
        assert ends[name][4:6] == [f"{row['kl']:.3f} ± {row['kl_error']:.3f}" for row in rows[2:]]
    for name in PICTURES:
        assert f"({name}.png)" in page
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert "python examples/plane_bridges.py --quick --seed 3\n" in page
    assert "{" not in page


def test_floors_are_of_several_pairs_of_fresh_samples_of_each_law(modules, small):
    found = modules["measures"].law_floors(modules["laws"].MOONS, small, SEED)
    for end, draw in (("start", points.labelled_moons), ("end", points.labelled_ring)):
        pairs = [(draw(50, SEED + 80_000 + k).points, draw(50, SEED + 90_000 + k).points) for k in range(12)]
        each = torch.tensor([hb.reference.sliced_w2(x, y) for x, y in pairs], dtype=torch.float64)
        assert found[end] == pytest.approx([float(each.mean()), float(each.std())], rel=1e-6)


def test_errors_are_told_in_deviations_of_the_floor(modules):
    """Above it, within it and, for an error that no bridge should have, below."""
    for last, wanted in ((0.2, "10.0 deviations above the floor"), (0.11, "within two deviations of the floor (0.090 after"),
                         (0.05, "5.0 deviations below the floor")):  # fmt: skip
        rows = [
            {"iterate": i + 1, "direction": ("backward", "forward")[i % 2], "start_sliced_w2": v, "end_sliced_w2": v}
            for i, v in enumerate((0.4, 0.4, 0.09, 0.09, last, last))
        ]
        floors = {"start": (0.1, 0.01), "end": (0.1, 0.01)}
        text = " ".join(
            modules["report"]
            ._bridge_seen("x", {"monitors": rows, "law_floors": floors, "stopped": "iterations"})
            .split()
        )
        assert f"at the start the error goes from 0.400 to {last:.3f}, {wanted}" in text


def test_the_page_says_who_needs_more_steps(modules, made):
    few = {
        n: {
            name: {"sliced_w2": value, "sliced_w2_se": 0.01, "energy": 0.0, "energy_se": 0.0}
            for name, value in rows.items()
        }
        for n, rows in {"5": {"DSB": 0.10, "A": 0.30, "B": 0.20}, "10": {"DSB": 0.08, "A": 0.25, "B": 0.12}}.items()
    }
    for rows in few.values():
        rows["SGM, first half-bridge"] = dict(rows["A"])
    page = " ".join(modules["report"].render({**made[1], "few": few}).split())
    assert "A: more than 10; B: 10; SGM, first half-bridge: more than 10." in page
    assert "the first half-bridge alone 3.00 times that. 3 of the 3 score-based rows" in page
    assert "The least is DSB's, 0.1000 ± 0.0100" in page


@pytest.mark.parametrize("n", [5, 10, 20])
def test_the_chain_has_the_noise_that_the_page_states(modules, n):
    s = modules["settings"].FULL
    chain = modules["models"].chain(s, n)
    assert 2.0 * math.fsum(chain.gammas) == pytest.approx(s.noise, rel=1e-12)
    assert max(chain.gammas) / chain.gammas[0] == pytest.approx(n, rel=1e-8)
    assert chain.gammas[-1] == pytest.approx(chain.gammas[0], rel=1e-8)
    assert chain.process == hb.Brownian(math.sqrt(s.noise), 1.0)  # exactly: the score that is trained once is of it


def test_points_are_told_by_the_part_of_the_law_that_they_are_from(modules):
    x, moon = points.labelled_moons(400, 1)
    y, component = points.labelled_ring(400, 1)
    assert torch.equal(modules["measures"].nearest_moon(x), moon.double())
    assert torch.equal(modules["laws"].components(y), component)
    for case in modules["laws"].CASES:
        for law in (case.start, case.end):
            drawn = modules["laws"].draw(law, 300, 2)
            assert 0.0 <= float(drawn.part.min()) <= float(drawn.part.max()) <= 1.0
            colours = modules["pictures"].coloured(law, drawn.part)
            assert colours.shape == (300, 3)
            assert len({tuple(c) for c in colours.tolist()}) >= 2


def test_sinkhorns_row_under_a_wide_reference_is_of_independent_ends(modules, small):
    case = modules["laws"].MOONS
    got = modules["measures"].static(case, small, SEED, hb.Brownian(1e4))
    sets = [
        (points.labelled_moons(30, SEED + 10_000 + 2 * k), points.labelled_ring(30, SEED + 10_001 + 2 * k)) for k in range(2)
    ]  # fmt: skip
    costs = [float(torch.cdist(x.points.double(), y.points.double()).square().mean()) for x, y in sets]
    assert got["cost"] == pytest.approx(sum(costs) / 2, rel=1e-6)
    assert got["cost_se"] == pytest.approx(abs(costs[0] - costs[1]) / 2, rel=1e-4)
    table = sum(
        torch.outer(torch.bincount(x.labels, minlength=2), torch.bincount(y.labels, minlength=8)) for x, y in sets
    )
    assert torch.allclose(torch.tensor(got["table"]).double(), (table / (2 * 30.0**2)).double(), atol=1e-6)


def test_a_learned_coupling_is_of_beginnings_with_their_own_ends(modules, small):
    class Shift:
        def translate(self, x, seed, *, to):
            return x + (2.0 if to == "end" else -2.0) * torch.tensor([0.6, 0.8])

    table = [[1 / 16] * 8] * 2
    got = modules["measures"].learned(Shift(), modules["laws"].MOONS, small, SEED, table)
    for way in ("forward", "backward"):
        assert got[way]["cost"] == pytest.approx(4.0, rel=1e-5)
        assert got[way]["cost_se"] == pytest.approx(0.0, abs=1e-6)
        mine = torch.tensor(got[way]["table"])
        assert float(mine.sum()) == pytest.approx(1.0, rel=1e-6)
        assert got[way]["variation"] == pytest.approx(0.5 * float((mine - 1 / 16).abs().sum()), rel=1e-6)
    x, moon = points.labelled_moons(small.pairs, SEED + 40_000)
    to = modules["laws"].components(x + torch.tensor([1.2, 1.6]))
    for m, k in ((0, int(to[moon == 0][0])), (1, int(to[moon == 1][0]))):
        share = float(((moon == m) & (to == k)).double().mean())
        assert got["forward"]["table"][m][k] == pytest.approx(share, rel=1e-6)
    y, gaussian = points.labelled_ring(small.pairs, SEED + 40_001)
    near = modules["measures"].nearest_moon(y - torch.tensor([1.2, 1.6]))
    upper = torch.bincount(gaussian[near == 0], minlength=8) / small.pairs
    assert torch.allclose(torch.tensor(got["backward"]["table"][0]), upper, atol=1e-6)


def _agree(row, samples, s):
    data = [points.checkerboard(s.samples, SEED + 20_000 + k) for k in range(2)]
    pairs = list(zip(samples, data, strict=True))
    sliced = [hb.reference.sliced_w2(x, y, projections=s.projections) for x, y in pairs]
    energy = [hb.reference.energy_distance(x, y) for x, y in pairs]
    assert row["sliced_w2"] == pytest.approx(sum(sliced) / 2, rel=1e-4)
    assert row["energy"] == pytest.approx(sum(energy) / 2, rel=1e-3, abs=1e-5)
    assert row["sliced_w2_se"] == pytest.approx(abs(sliced[0] - sliced[1]) / 2, rel=1e-2, abs=1e-5)
    assert row["evaluations"] == 3


def _cells(page, head):
    """{first cell: the others} of the table that begins so."""
    lines = page[page.index(head) :].split("\n\n")[0].splitlines()[2:]
    return {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}
