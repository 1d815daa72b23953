"""What bounds a kernel on a GPU: device memory, instruction issue, or one of the pipes."""

from typing import NamedTuple

from benchmarks.aot.targets import Target


class Bound(NamedTuple):
    """times: seconds an element by resource, "memory" for device memory at the vendor's bandwidth and pipes by name."""

    times: dict[str, float]

    @property
    def by(self) -> str:
        """The resource that takes longest."""
        return max(self.times, key=lambda name: self.times[name])

    @property
    def rate(self) -> float:
        """Elements a second, at most."""
        return 1 / self.times[self.by]

    @property
    def arithmetic(self) -> tuple[str, float]:
        """The pipe that takes longest, and its time as a share of the memory time: below 1 it is hidden behind memory."""
        pipe = max((name for name in self.times if name != "memory"), key=lambda name: self.times[name])
        return pipe, self.times[pipe] / self.times["memory"]


def bound(target: Target, bytes_moved: float, slots: dict[str, float]) -> Bound:
    """Of a kernel that moves `bytes_moved` and takes `slots` of each pipe, both an element and a thread."""
    unknown = set(slots) - set(target.rates)
    if unknown:
        raise ValueError(f"no rates of {sorted(unknown)} for {target.name}; add them to `targets`")
    times = {"memory": bytes_moved / target.bandwidth}
    times |= {name: n / (target.rates[name] * target.units * target.clock) for name, n in slots.items()}
    return Bound(times)
