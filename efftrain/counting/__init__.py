"""FLOPs, bytes and memory of a step: counted and predicted on fake tensors before training, memory measured too."""
