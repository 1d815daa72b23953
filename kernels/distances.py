"""Squared distances by matrix products, as good as if each came from the difference of its two points.

|y - p|^2 = |y|^2 - 2 y.p + |p|^2 would err by |y|^2 2^-52, which 1e-8 away from p is the distance itself. So y and p are cut
at one power of two into heads of few bits, whose products and sums are exact in any order, and tails (error-free splitting:
Ozaki, Ogita, Oishi and Rump 2012). The heads cancel exactly, down to the distance itself, and only then meet the products
with tails, 2^BITS times smaller.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

BITS = 24  # of a head as long as the longest p: products and sums stay within 53 while |y| is less than 15 times that


class Points(NamedTuple):
    """Points p, (k, d), cut for `distances`: heads, their squares |head|^2, |p|^2 less these, and (tail, p) in columns."""

    head: Tensor
    squares: Tensor
    rest: Tensor
    right: Tensor


def unit(reach: float) -> float:
    """Where points no longer than `reach` are cut."""
    return math.ldexp(1.0, max(math.frexp(reach)[1], -900) - BITS)


def cut(y: Tensor, unit: float) -> tuple[Tensor, Tensor]:
    """(head, tail) of float64 numbers: multiples of the unit, and the rest, which carries the whole derivative."""
    head = (y.detach() / unit).round_().mul_(unit)
    return head, y - head


def points(p: Tensor, unit: float) -> Points:
    head, tail = cut(p, unit)
    return Points(head, head.square().sum(1), ((p + head) * tail).sum(1), torch.cat([tail, p], 1).mT)


def distances(head: Tensor, tail: Tensor, p: Points) -> tuple[Tensor, Tensor]:
    """(above, least): |y - p|^2 = above + `nearest`, of each y = head + tail (n, d) to each point; (n, k) and (n, 1).

    least is the smallest |p|^2 - 2 y.p of heads, exact and without a derivative. What a sample's distances share is kept
    apart from them, so that far away it does not drown what they differ by.
    """
    heads = torch.addmm(p.squares, head, p.head.mT, alpha=-2)
    least = heads.amin(1, keepdim=True)
    return torch.addmm(heads.sub_(least).add_(p.rest), torch.cat([head, tail], 1), p.right, alpha=-2), least


def nearest(least: Tensor, y: Tensor, head: Tensor, tail: Tensor) -> Tensor:
    """What the distances of each y share, (n, 1): the smallest squared distance between heads, which is exact, and tails."""
    return least + head.square().sum(1, keepdim=True) + ((y + head) * tail).sum(1, keepdim=True)
