"""Fresh weights from a seed, alike on every device."""

import math

import torch
from torch import Tensor, nn

from efftrain.workload.models.presets import Initialisation
from efftrain.workload.models.transformer import Transformer


def initialise(model: Transformer, seed: int) -> None:
    """Fill all weights from `seed`: matrices from a normal distribution as `config.initialisation` has it, norms 1.

    Drawn in float32 on the host, in the order of `named_parameters`, whatever the device and type of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            nn.init.ones_(parameter)
            continue
        std = standard_deviation(name, parameter, model.config.initialisation, model.config.num_layers)
        draw = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
        with torch.no_grad():
            parameter.copy_(draw)


def standard_deviation(name: str, matrix: Tensor, initialisation: Initialisation, num_layers: int) -> float:
    """Of what the matrix [fan-out, fan-in] is drawn from.

    An embedding [V, D] counts as the output head that it is where it is tied: fan-in D, fan-out V.

    - `scaled`: variance 1 / fan-in, which keeps the size of activations (LeCun et al., Efficient BackProp, 1998,
      section 4.6), so that a tied head starts with logits of unit variance. The two projections that write into the
      residual stream are scaled by 1/√(2L) besides, so that its variance does not grow with depth (Radford et al.,
      2019, section 2.3).
    - `xavier`: 2 / (fan-in + fan-out), between what keeps activations and what keeps gradients (Glorot and Bengio,
      AISTATS 2010, equation 12).
    - `he`: 2 / fan-in, for a rectifier that drops half of its inputs (He et al., arXiv:1502.01852, equation 10).
    """
    fan_out, fan_in = matrix.shape
    match initialisation:
        case "scaled":
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            return (1 / math.sqrt(2 * num_layers) if writes else 1.0) / math.sqrt(fan_in)
        case "xavier":
            return math.sqrt(2 / (fan_in + fan_out))
        case "he":
            return math.sqrt(2 / fan_in)
