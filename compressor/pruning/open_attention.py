"""torch's own attention as four linear layers: heads can leave, or the width of its stream, each alone."""

import torch
from torch import nn
from torch.nn import functional

from ...core.errors import ArtifactError


class OpenAttention(nn.Module):
    """Computes what `nn.MultiheadAttention` computes, called in the same way; inputs (N, L, E) or, unbatched, (L, E).

    The heads are as many as the layers have room for: `head_dim` stays, whole heads leave.
    """

    in_proj_bias = None  # what torch's transformer layers ask before they take a fused path past the layers
    _qkv_same_embed_dim = False

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        weights = (
            attention.in_proj_weight.chunk(3)
            if attention._qkv_same_embed_dim
            else (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        )
        biases = (None, None, None) if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
        self.query, self.key, self.value = (_linear(w, b) for w, b in zip(weights, biases, strict=True))
        self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)
        self.head_dim, self.dropout, self.batch_first = attention.head_dim, attention.dropout, attention.batch_first
        self.train(attention.training)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `nn.MultiheadAttention.forward`; `is_causal` is a hint there too, beside a mask."""
        single = query.ndim == 2
        parts = [
            x.unsqueeze(0) if single else x if self.batch_first else x.transpose(0, 1) for x in (query, key, value)
        ]
        q, k, v = (self._heads(layer(x)) for layer, x in zip((self.query, self.key, self.value), parts, strict=True))
        mask = _mask(key_padding_mask, attn_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            y = functional.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
        result = self.out_proj(y.transpose(1, 2).flatten(2))
        if single:
            return result.squeeze(0), None if weights is None else weights.squeeze(0)
        return result if self.batch_first else result.transpose(0, 1), weights

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """(N, L, heads * D) -> (N, heads, L, D)."""
        return x.reshape(*x.shape[:2], -1, self.head_dim).transpose(1, 2)


def find(module: nn.Module) -> list[str]:
    """Names of the attentions that can be opened."""
    shut = closed(module)
    return [name for name in _attentions(module) if name not in shut]


def closed(module: nn.Module) -> dict[str, str]:
    """Name -> reason, of the attentions that stay as they are, so that no head can leave them."""
    reasons = {name: _shut(module, name, attention) for name, attention in _attentions(module).items()}
    return {name: reason for name, reason in reasons.items() if reason}


def opened(module: nn.Module, name: str) -> None:
    """Put an `OpenAttention` in place of one attention.

    Raises:
        ArtifactError: there is none of that name.
    """
    attention = _attentions(module).get(name)
    if attention is None or _extended(attention):
        raise ArtifactError(
            f"edit of attention '{name}': the architecture has no such attention; was the class changed?"
        )
    module.set_submodule(name, OpenAttention(attention))


def _attentions(module: nn.Module) -> dict[str, nn.MultiheadAttention]:
    return {name: layer for name, layer in module.named_modules() if type(layer) is nn.MultiheadAttention}


def _extended(attention: nn.MultiheadAttention) -> bool:
    return attention.bias_k is not None or attention.add_zero_attn


def _shut(module: nn.Module, name: str, attention: nn.MultiheadAttention) -> str:
    """Why an attention is not opened, or an empty string."""
    if _extended(attention):
        return "it puts a bias or a zero behind its keys and values, which is not followed"
    layers = dict(module.named_modules())
    others = [
        f"{holder}.{key}".removeprefix(".")
        for holder, layer in layers.items()
        for key, child in layer._modules.items()
        if child is attention
    ]
    if len(others) > 1:
        return f"it has several names ({', '.join(others)}); opening it would leave the others behind"
    parameters = {id(each): key for key, each in attention.named_parameters(prefix=name)}
    for holder, layer in layers.items():
        for key, each in layer.named_parameters(prefix=holder, recurse=False, remove_duplicate=False):
            if parameters.get(id(each), key) != key:
                return f"{parameters[id(each)]} is tied to {key}; opening it would untie them"
    return ""


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return layer


def _mask(padding: torch.Tensor | None, mask: torch.Tensor | None, q: torch.Tensor) -> torch.Tensor | None:
    """Both masks as numbers that are added to the scores (N, heads, L, S); True leaves out.

    Args:
        padding: (N, S), or (S) of an unbatched input.
        mask: (L, S), or (N * heads, L, S), which fits only while all heads are there.
    """
    parts = []
    if mask is not None:
        mask = _numbers(mask, q)
        parts.append(mask.reshape(q.shape[0], -1, *mask.shape[1:]) if mask.ndim == 3 else mask)
    if padding is not None:
        parts.append(_numbers(padding, q).reshape(q.shape[0], 1, 1, -1))
    return sum(parts[1:], parts[0]) if parts else None


def _numbers(mask: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, float("-inf"))
