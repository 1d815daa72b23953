"""Triton kernels and their launchers, one file a primitive, named as the file in `kernels` that says what it means.

A launcher `<name>_triton` takes what `<name>_reference` takes, already checked, and is found through the table in
`kernels.dispatch`; nothing else imports this folder, which needs triton. On CPU tensors the kernels run in Triton's
interpreter (TRITON_INTERPRET=1 before triton is imported).

How kernels are written here:
- states are flat and contiguous; offsets within a tile are int32 and the tile's own start int64, so sizes have no limit
- numbers computed on the host come as bits in an int64 (`launch.bits`), or from device memory where a captured graph must be
  able to change them; a Python float would arrive as a float32
- float64 states are computed in float64, all others in float32, with no float64 instruction
- normals are made in registers, all four words of a counter used (`noise`, `normals`); sums over a sample are cut into
  parts that depend on the sample's size alone, so that a sample's bits do not depend on its batch
- a thread moves 16 bytes at once wherever alignment allows it
"""
