"""The GPUs that kernels are compiled for, with the hardware numbers that bounds need.

Where a vendor states two peaks that imply different clocks, the lower clock is taken, so that what is called hidden behind
memory stays hidden. Rates are results (thread operations) per clock of one SM or compute unit.

Sources: [W] A100, H100 and Blackwell architecture whitepapers and data sheets, [P] CUDA C++ Programming Guide, tables of
compute capabilities and of native arithmetic throughput, [M] AMD Instinct MI300X data sheet and CDNA 3 white paper, [R] ROCm
Compute Profiler, pipeline descriptions, [L] LLVM, AMDGPU's SISchedule.td and occupancy calculation. "Assumed" says that no
vendor's document was found to state the number, which is then chosen on the slow side.
"""

from typing import Any, NamedTuple


class Target(NamedTuple):
    """One GPU: what Triton compiles for, and what its machine code costs there."""

    name: str  # as the compiler has it
    gpu: str
    backend: str  # Triton's: "cuda" or "hip"
    architecture: int | str
    lanes: int  # threads that execute one instruction together
    units: int  # SMs or compute units
    clock: float  # Hz
    bandwidth: float  # bytes/s of device memory
    rates: dict[str, float]  # pipe -> results a clock and unit
    registers: int  # of 32 bits, in one unit
    register_granule: int  # registers of a thread are allocated in multiples of this
    warps: int  # resident at once in one unit
    blocks: int  # likewise
    partitions: int  # schedulers of a unit, each with its share of registers and warps
    shared: int  # bytes of shared memory in one unit
    shared_reserved: int  # bytes of it that every block takes for the system

    def triton(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget(self.backend, self.architecture, self.lanes)


# issue: 4 schedulers, one warp instruction a clock each [P]. alu: integer addition, comparison, shift and logic, 64 [P].
# imad: 32-bit integer multiplication, 64 [P]; a product with its high word (IMAD.WIDE, IMAD.HI) counts twice (assumed).
# fma: float32 arithmetic and IMAD together, as they share units: 64 on compute capability 8.0, 128 on 9.0 and 10.0 [P].
# xu: reciprocals, roots and all conversions, 16 [P]. fp64: 32 on 8.0, 64 on 9.0 and 10.0 [P]. shuffle: 32 [P].
# lsu: 32 threads' loads or stores a clock, whatever their width (assumed: four of 8 load/store units [W]).
AMPERE = {"issue": 128, "alu": 64, "imad": 64, "fma": 64, "xu": 16, "fp64": 32, "shuffle": 32, "lsu": 32}
HOPPER = AMPERE | {"fma": 128, "fp64": 64}
BLACKWELL = HOPPER  # alu and imad assumed as on 9.0; FP64 at half of FP32's rate [W]

# valu: four 16-lane SIMDs, a wave of 64 takes four clocks on one [R]; packed float32 and float64 FMA at that rate too [M].
# Conversions and transcendentals take four times as long [L]; so do 32-bit integer products here (assumed: GCN's rate; [L]
# has them at full rate on gfx942). salu: each SIMD's turn, every fourth clock, issues one scalar instruction beside the vector
# one [R]. lds, vmem: one instruction a clock and unit (assumed).
CDNA3 = {"valu": 64, "salu": 64, "lds": 64, "vmem": 64}

A100 = Target(
    "sm_80", "A100 SXM 80 GB", "cuda", 80, 32,
    108, 1.41e9, 2.039e12, AMPERE,  # [W]: 19.5 TFLOP/s = 108 SMs x 64 x 2 x 1.41 GHz; 2039 GB/s
    65536, 8, 64, 32, 4, 164 << 10, 1 << 10,  # [P]; registers go to warps in units of 256
)  # fmt: skip
H100 = Target(
    "sm_90", "H100 SXM", "cuda", 90, 32,
    132, 1.83e9, 3.35e12, HOPPER,  # [W]: 989.4 dense bf16 TFLOP/s = 132 SMs x 4096 x 1.83 GHz; FP32's 67 imply 1.98 GHz
    65536, 8, 64, 32, 4, 228 << 10, 1 << 10,  # [P]
)  # fmt: skip
B200 = Target(
    "sm_100", "B200", "cuda", 100, 32,
    148, 1.85e9, 8.0e12, BLACKWELL,  # 148 SMs as the driver reports; [W]: 2250 dense bf16 TFLOP/s = 148 x 8192 x 1.85 GHz
    65536, 8, 64, 32, 4, 228 << 10, 1 << 10,  # [P]
)  # fmt: skip
MI300X = Target(
    "gfx942", "MI300X", "hip", "gfx942", 64,
    304, 2.1e9, 5.3e12, CDNA3,  # [M]
    4 * 64 * 512, 8, 32, 16, 4, 64 << 10, 0,  # [R]: 512 KiB of vector registers, 8 waves a SIMD; [L]: granule, blocks
)  # fmt: skip

TARGETS = (A100, H100, B200, MI300X)
