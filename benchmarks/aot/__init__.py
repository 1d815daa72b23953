"""`python -m benchmarks.aot`: what the Triton kernels compile to, read from the machine code, without a GPU.

The real launchers run on CPU tensors under a driver that compiles for a target instead of launching (`capture`). From each
launch's machine code (`sass`, `amdgcn`) come registers, spills, the widths of global accesses and the instructions that a
thread executes on the common path (`controlflow`, with the trip counts of loops from Triton's own IR, `meaning`); from those,
bytes and instructions an element and what bounds the kernel on each GPU (`targets`, `occupancy`, `roofline`). `cases` collects
what to compile from `benchmarks/NAME.py: aot_cases()`, `analysis` makes the rows, `report` the text.
"""
