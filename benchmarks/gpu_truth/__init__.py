"""What a GPU's energy counter is worth, and the first study on CUDA: see `__main__`."""
