"""What is known about the kernels and how: a check by the compiler alone, measurements where there is a GPU.

`python -m efftrain_kernels.evidence check|bench|tune|gpu`. Nothing here is imported by training; it needs torch,
triton and numpy, and pytest for one stage of `gpu`. What else is installed (NVML, flash-attn, apex, bitsandbytes) is
used, and what is missing is named as missing.
"""
