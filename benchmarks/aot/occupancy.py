"""Theoretical occupancy: the share of a unit's warps that can be resident, by registers, shared memory and block count."""

from benchmarks.aot.code import Resources
from benchmarks.aot.targets import Target


def occupancy(target: Target, resources: Resources, warps: int) -> float:
    """In [0, 1], for blocks of that many warps; 0 where not even one block fits."""
    granted = -(-max(resources.registers, 1) // target.register_granule) * target.register_granule
    of_partition = min(
        target.registers // target.partitions // (granted * target.lanes), target.warps // target.partitions
    )
    by_warps = target.partitions * of_partition // warps
    by_shared = target.shared // (resources.shared + target.shared_reserved) if resources.shared else target.blocks
    return min(by_warps, by_shared, target.blocks) * warps / target.warps
