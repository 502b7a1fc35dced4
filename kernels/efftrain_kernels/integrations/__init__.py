"""What other people's trainers need beyond `attention` and `AdamW` themselves, and nothing else.

transformers asks for a registration and its Trainer for a class with settings; both are here. Lightning takes the
optimizer from `configure_optimizers` and a plain training loop calls it directly, so neither needs code of ours: both
stand as examples in kernels/examples. No library is imported before one of these functions is called.
"""

from efftrain_kernels.integrations.transformers import register_with_transformers, trainer_optimizer

__all__ = ["register_with_transformers", "trainer_optimizer"]
