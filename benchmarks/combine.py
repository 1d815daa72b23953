"""`python -m benchmarks.combine`: `combine` against the plain torch expression a x + b y (+ c randn), per backend.

Rows: backend, shape, noise, milliseconds (medians), the ratio of paired turns with its 20 and 80 % quantiles, error in
units of the last place of the largest result. A result that is off by more than 2 of these is not timed.
"""

import torch

from benchmarks.pairs import interleaved, provenance
from halfbridge.kernels import Noise, combine, normal, use
from halfbridge.kernels.combine import combine_reference
from halfbridge.kernels.dispatch import available

A, B, C = 0.97, -0.21, 0.3
ALLOWED = 2.0


def main() -> None:
    print(provenance())
    print(f"{'backend':10s}{'shape':>16s} noise   form       ours ms   torch ms    ratio  [20 %, 80 %]  error/ulp")
    for name in available():
        for shape in ((1, 2), (64, 64), (1000, 1000)):
            x, y, out = normal(shape, 1), normal(shape, 2), torch.empty(shape)
            calls = 1 if x.numel() > 10_000 else 200
            for noise in (None, Noise(C, 3, 1)):
                with use(name), torch.no_grad():
                    exact = A * x.double() + B * y.double()
                    if noise is not None:
                        exact += C * normal(shape, 3, 1).double()
                    error = float(((combine([x, y], [A, B], noise=noise) - exact).abs() / exact.abs().max()).max())
                    error /= torch.finfo(torch.float32).eps
                    if error > ALLOWED:
                        raise RuntimeError(f"{name} is off by {error:.1f} ulp at {shape} (allowed: {ALLOWED}); mend it")

                    def plain(x: torch.Tensor = x, y: torch.Tensor = y, noise: Noise | None = noise) -> torch.Tensor:
                        total = A * x + B * y
                        return total if noise is None else total + C * torch.randn_like(x)

                    forms = {
                        "checked": lambda x=x, y=y, noise=noise, out=out: combine([x, y], [A, B], noise=noise, out=out),
                        "planned": lambda x=x, y=y, noise=noise, out=out: combine_reference([x, y], [A, B], noise, out),
                    }
                    for form, ours in forms.items():
                        pair = interleaved(ours, plain, 15, calls)
                        kind = "no" if noise is None else "yes"
                        print(f"{name:10s}{shape!s:>16s} {kind:5s}   {form:7s} {pair.row()}   {error:.2f}")


if __name__ == "__main__":
    main()
