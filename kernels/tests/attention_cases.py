"""Inputs, an exact answer and the tolerance that tests of attention share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from efftrain_kernels import reference


@dataclass(frozen=True)
class Answer:
    """Output, log-sum-exp and gradients of q, k, v and sinks, detached."""

    values: dict[str, Tensor]


def draw(*shape, dtype=torch.float32, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)


def inputs(*, batch=1, heads=2, kv_heads=1, len_q=5, len_k=7, dim=64, dtype=torch.float32, device="cpu"):
    q = draw(batch, heads, len_q, dim, dtype=dtype, seed=1, device=device)
    k, v = (draw(batch, kv_heads, len_k, dim, dtype=dtype, seed=s, device=device) for s in (2, 3))
    return q, k, v


def packed_inputs(lengths_q, lengths_k, *, heads=2, kv_heads=1, dim=64, dtype=torch.float32, device="cpu"):
    q = draw(sum(lengths_q), heads, dim, dtype=dtype, seed=1, device=device)
    k, v = (draw(sum(lengths_k), kv_heads, dim, dtype=dtype, seed=s, device=device) for s in (2, 3))
    offsets = [torch.tensor([0, *n], device=device).cumsum(0).int() for n in (lengths_q, lengths_k)]
    packing = dict(zip(("cu_seqlens_q", "cu_seqlens_k"), offsets, strict=True))
    return (q, k, v), {**packing, "max_seqlen_q": max(lengths_q), "max_seqlen_k": max(lengths_k)}


def answer(call, q, k, v, *, sinks=None, through_lse=True, **settings) -> Answer:
    """Run `call` forward and backward, against fixed gradients of its output and of its log-sum-exp."""
    leaves = {"q": q, "k": k, "v": v} | ({} if sinks is None else {"sinks": sinks})
    leaves = {name: x.detach().clone().requires_grad_() for name, x in leaves.items()}
    out, lse = call(**leaves, **settings)
    grad, grad_lse = _gradients(q, lse.shape, through_lse=through_lse)
    seen = lse > -torch.inf  # the gradient of −inf is no number
    loss = (out * grad).sum() + (torch.where(seen, lse, 0.0) * grad_lse).sum()
    loss.backward()
    values = {"out": out.detach(), "lse": lse.detach(), **{f"d{name}": x.grad for name, x in leaves.items()}}
    return Answer(values)


def exact(q, k, v, *, sinks=None, **settings) -> Answer:
    """The reference in float64, from the very values that the inputs have in their own type."""
    wide = {"sinks": None if sinks is None else sinks.double()}
    return answer(_reference, q.double(), k.double(), v.double(), **wide, **settings)


def assert_twice_as_good(got: Answer, q, k, v, *, sinks=None, **settings) -> None:
    """No value is further off than twice the plain computation, plus twice what one rounding near 0.3 costs.

    The plain computation is the same algorithm in plain PyTorch with every intermediate in the inputs' type. Scores,
    the log-sum-exp and δ are float32 whatever that is: what their rounding does to the exact results is allowed too
    (where a row has one key, its gradient is the difference of two equal sums).
    """
    truth = exact(q, k, v, sinks=sinks, **settings).values
    rough = plain(q, k, v, sinks=sinks, **settings).values
    kept = _with_kept_values_rounded(truth, q, k, v, sinks=sinks, **settings)
    for name, true in truth.items():
        ours = got.values[name]
        assert torch.equal(ours == -torch.inf, true == -torch.inf), name
        bound = 2 * _furthest(rough[name], true) + 2 * _rounding(true, ours.dtype) + _furthest(kept[name], true)
        assert _furthest(ours, true) <= bound, f"{name}: {_furthest(ours, true):.2e} above {bound:.2e}"


def _with_kept_values_rounded(
    truth, q, k, v, *, sinks, causal=False, softmax_scale=None, window=(None, None), softcap=0.0, through_lse=True,
    cu_seqlens_q=None, cu_seqlens_k=None, **_,
):  # fmt: skip
    """The exact gradients from scores and δ rounded once in float32, and a log-sum-exp rounded four times."""
    q, k, v = (x.double() for x in (q, k, v))
    eps, out, lse = torch.finfo(torch.float32).eps, truth["out"], truth["lse"]
    grad, grad_lse = _gradients(q, lse.shape, through_lse=through_lse)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    score = abs(scale) * float(q.norm(dim=-1).max() * k.norm(dim=-1).max())
    rounded = lse * (1 + 2 * eps) + eps / 2 * score
    size = grad.norm(dim=-1) * v.norm(dim=-1).max()  # |dP| and |δ| are at most that, by Cauchy and Schwarz
    grad_lse = grad_lse + eps / 2 * (size if q.ndim == 4 else size.transpose(0, 1))
    gradients = reference.attention_backward(
        grad, grad_lse.masked_fill(lse == -torch.inf, 0.0), q, k, v, out, rounded,
        scale=scale,
        band=(window[0], 0 if causal else window[1]), softcap=softcap, sinks=None if sinks is None else sinks.double(),
        cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k,
    )  # fmt: skip
    return {"out": out, "lse": rounded, **dict(zip(("dq", "dk", "dv", "dsinks"), gradients, strict=True))}


def plain(q, k, v, *, sinks=None, through_lse=True, cu_seqlens_q=None, cu_seqlens_k=None, **settings) -> Answer:
    """FlashAttention-2 written out in the inputs' own type, every intermediate rounded to it."""
    settings = {name: value for name, value in settings.items() if not name.startswith("max_seqlen")}
    if cu_seqlens_q is None:
        grads = _gradients(q, q.shape[:3], through_lse=through_lse)
        return Answer(_plain(q, k, v, *grads, sinks, **settings))
    grad, grad_lse = _gradients(q, (q.shape[1], q.shape[0]), through_lse=through_lse)
    sizes_q, sizes_k = (x.diff().tolist() for x in (cu_seqlens_q, cu_seqlens_k))
    pieces = [
        _plain(*(x.transpose(0, 1)[None] for x in parts[:4]), parts[4][None], sinks, **settings)
        for parts in zip(
            q.split(sizes_q), k.split(sizes_k), v.split(sizes_k), grad.split(sizes_q), grad_lse.split(sizes_q, -1),
            strict=True,
        )
    ]  # fmt: skip
    values = {n: torch.cat([p[n][0].transpose(0, 1) for p in pieces]) for n in ("out", "dq", "dk", "dv")}
    values["lse"] = torch.cat([piece["lse"][0] for piece in pieces], dim=-1)
    return Answer(values | ({"dsinks": sum(piece["dsinks"] for piece in pieces)} if sinks is not None else {}))


def _plain(q, k, v, grad, grad_lse, sinks, *, causal=False, softmax_scale=None, window=(None, None), softcap=0.0):
    groups, scale = q.shape[1] // k.shape[1], q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    scores, slope = q @ k.transpose(-1, -2) * scale, 1.0
    if softcap:
        capped = torch.tanh(scores / softcap)
        scores, slope = softcap * capped, 1 - capped * capped
    scores = scores.masked_fill(_hidden(q, k, causal, window), -torch.inf)
    lse = torch.logsumexp(scores.float(), dim=-1)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks.float()[:, None])
    safe = lse.masked_fill(lse == -torch.inf, 0.0)
    weights = torch.exp(scores.float() - safe[..., None]).to(q.dtype)
    out = weights @ v
    delta = (grad * out).sum(-1) - grad_lse.to(q.dtype).masked_fill(lse == -torch.inf, 0.0)
    d_scores = weights * (grad @ v.transpose(-1, -2) - delta[..., None]) * slope
    grouped = {
        name: x.unflatten(1, (-1, groups)).sum(2)
        for name, x in {"dk": d_scores.transpose(-1, -2) @ q * scale, "dv": weights.transpose(-1, -2) @ grad}.items()
    }
    values = {"out": out, "lse": lse, "dq": d_scores @ k * scale, **grouped}
    if sinks is not None:
        values["dsinks"] = -(torch.exp(sinks[:, None] - safe).to(q.dtype) * delta).sum((0, 2))
    return values


def _hidden(q, k, causal, window):
    left, right = window[0], 0 if causal else window[1]
    offset = torch.arange(k.shape[2], device=q.device) - (
        torch.arange(q.shape[2], device=q.device)[:, None] + k.shape[2] - q.shape[2]
    )
    hidden = torch.zeros_like(offset, dtype=torch.bool)
    hidden = hidden if right is None else hidden | (offset > right)
    return hidden if left is None else hidden | (offset < -left)


def _gradients(q, lse_shape, *, through_lse=True):
    """The gradients of output and log-sum-exp that every answer is differentiated with."""
    grad = draw(*q.shape, dtype=q.dtype, seed=9, device=q.device)
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return grad, through_lse * draw(*lse_shape, dtype=lse_dtype, seed=9, device=q.device)


def _furthest(x: Tensor, true: Tensor) -> float:
    errors = (x.double() - true)[true > -torch.inf].abs()
    return float(errors.max()) if errors.numel() else 0.0


def _rounding(true: Tensor, dtype: torch.dtype) -> float:
    narrow = true[true > -torch.inf].to(dtype)
    return float(((narrow + 0.3) - 0.3 - narrow).abs().max()) if narrow.numel() else 0.0


def _reference(q, k, v, *, max_seqlen_q=None, max_seqlen_k=None, **settings):
    return reference.attention(q, k, v, **settings)
