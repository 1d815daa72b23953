"""Autograd refuses a gradient that needs numbers which a kernel has overwritten, whatever backend wrote there."""

from collections.abc import Callable

import pytest
import torch
from layouts import laid_out
from torch import Tensor

from halfbridge.kernels import Noise, combine, ema_update, hutchinson_probe, langevin, normal, use
from halfbridge.kernels.dispatch import available

NOISE = Noise(1.0, 3, 1)
WRITERS: dict[str, Callable[[Tensor], object]] = {
    "sum": lambda x: combine([x], [5.0], out=x),
    "sum of others": lambda x: combine([x.clone(), x + 1], [5.0, 1.0], out=x),
    "noisy sum": lambda x: combine([x], [5.0], noise=NOISE, out=x),
    "normal": lambda x: normal(tuple(x.shape), 1, out=x),
    "probe": lambda x: hutchinson_probe(tuple(x.shape), 1, out=x),
    "langevin": lambda x: langevin(x, x + 1, snr=0.1, noise=NOISE, out=x),
    "average": lambda x: ema_update([x], [x + 1], 0.5),
}


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("layout", ["plain", "strided"])
@pytest.mark.parametrize("writer", WRITERS)
def test_autograd_hears_of_it(backend: str, layout: str, writer: str) -> None:
    w, x = torch.ones(4, 6, requires_grad=True), laid_out(torch.ones(4, 6), layout)
    product = w * x
    with torch.no_grad(), use(backend):
        WRITERS[writer](x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
