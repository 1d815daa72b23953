"""Counter-based normals again, from the papers, in Python ints and mpmath: slow, independent of the package."""

import mpmath


def philox_in_python(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 (Salmon et al. 2011): ten rounds, the key bumped between them, unbounded ints cut to words."""
    a, b, c, d = counter
    k0, k1 = key
    for i in range(10):
        if i > 0:
            k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
        high0, low0 = divmod(0xD2511F53 * a, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c, 2**32)
        a, b, c, d = high1 ^ b ^ k0, low1, high0 ^ d ^ k1, low0
    return [a, b, c, d]


def box_muller_in_mpmath(w0: int, w1: int) -> tuple[float, float]:
    """sqrt(-2 ln u0) (cos, sin)(2 pi u1), u = (w + 1/2) / 2^32, to 30 digits, then rounded to double."""
    with mpmath.workdps(30):
        u0, u1 = (mpmath.mpf(2 * w + 1) / 2**33 for w in (w0, w1))
        r = mpmath.sqrt(-2 * mpmath.log(u0))
        return float(r * mpmath.cospi(2 * u1)), float(r * mpmath.sinpi(2 * u1))


def normal_in_python(seed: int, draw: int, sample: int, element: int) -> float:
    """Element `element` of the flattened sample with global index `sample`."""
    counter = [element // 4, draw, sample % 2**32, sample // 2**32]
    w = philox_in_python(counter, [seed % 2**32, seed // 2**32])
    pair = element % 4 // 2 * 2
    return box_muller_in_mpmath(w[pair], w[pair + 1])[element % 2]
