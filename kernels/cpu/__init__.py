"""What numba compiles for tensors on the CPU, one file a primitive, named as the file in `kernels` that says what it means.

- `compiler`: functions compiled with some of their names replaced; kernels kept in numba's cache on disk
- `threads`: a loop shared by Python threads
- `normal`, `combine`: the primitives, found through the table in `kernels.dispatch` and imported when they first pay

The arithmetic is that of the eager reference, operation by operation, so both give the same bits. Nothing else imports
this folder, which needs numba.
"""
