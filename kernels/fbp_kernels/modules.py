"""The operators as modules, with parameters in the standard layout.

Every module takes `backend` ("native", "triton", "reference" or None for the best there is) and keeps
it as an attribute; `fbp_kernels.accelerate` sets it on a whole model.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import backends, ops


class FactorizedBilinearPooling(nn.Module):
    """Global factorized bilinear pooling, see `fbp_kernels.fbp`.

    Args:
        a_features: C.
        v_features: D.
        out_features: O.
        factor: K.
        bias: add a bias to both projections.
        adaptive: weigh the modalities by their norms.
        dropout: probability of dropping an element of the product, in training.
        normalize: end with `fbp_kernels.power_normalize`.
        backend: which kernels run it.
        device: of the parameters.
        dtype: of the parameters.

    Parameters: p (C, O * K), q (D, O * K) and, with `bias`, p_bias and q_bias (O * K,).
    """

    def __init__(
        self,
        a_features: int,
        v_features: int,
        out_features: int,
        factor: int,
        bias: bool = False,
        adaptive: bool = False,
        dropout: float = 0.0,
        normalize: bool = False,
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _positive(
            a_features=a_features, v_features=v_features, out_features=out_features, factor=factor
        )
        self.a_features, self.v_features = a_features, v_features
        self.out_features, self.factor = out_features, factor
        self.adaptive, self.dropout, self.normalize = adaptive, dropout, normalize
        self.backend = backend
        columns = out_features * factor
        self.p = _weight(a_features, columns, device=device, dtype=dtype)
        self.q = _weight(v_features, columns, device=device, dtype=dtype)
        self.p_bias = _weight(columns, device=device, dtype=dtype) if bias else None
        self.q_bias = _weight(columns, device=device, dtype=dtype) if bias else None
        self.reset_parameters()

    @classmethod
    def mfb(
        cls,
        a_features: int,
        v_features: int,
        out_features: int = 1000,
        factor: int = 5,
        **options: Any,
    ) -> "FactorizedBilinearPooling":
        """The published MFB (Yu et al. 2017): biased projections, no activation, dropout 0.1, normalised."""
        published: dict[str, Any] = {"bias": True, "dropout": 0.1, "normalize": True}
        return cls(a_features, v_features, out_features, factor, **(published | options))

    def reset_parameters(self) -> None:
        """Draws the parameters as `torch.nn.Linear` draws its own, uniform within 1 / sqrt(width)."""
        _draw(self.a_features, self.p, self.p_bias)
        _draw(self.v_features, self.q, self.q_bias)

    def forward(self, a: Tensor, v: Tensor) -> Tensor:
        """Pools a (B, C) and v (B, D) into (B, O)."""
        pooled = ops.fbp(
            a, v, self.p, self.q, self.factor,
            p_bias=self.p_bias, q_bias=self.q_bias, adaptive=self.adaptive,
            dropout=self.dropout, training=self.training, backend=self.backend,
        )  # fmt: skip
        return _normalized(pooled, self.normalize, self.backend)

    def load_mfb_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str = "") -> list[str]:
        """Takes the projections of an MFB of `block.bootstrap.pytorch` (its `linear0` and `linear1`).

        Args:
            state_dict: `linear0.weight` (O * K, C), `linear0.bias` (O * K,), `linear1.weight` (O * K, D),
                `linear1.bias` (O * K,), each behind `prefix`.
            prefix: such as "fusion.".

        Returns:
            The keys behind the prefix that belong to other layers, such as `linear_out.weight`.

        Raises:
            KeyError: a projection is missing.
            ValueError: a shape does not fit, or the module was made without biases.
        """
        if self.p_bias is None or self.q_bias is None:
            raise ValueError(
                "load_mfb_state_dict: this module has bias=False, expected bias=True as MFB has"
            )
        targets = {
            "linear0.weight": self.p, "linear0.bias": self.p_bias,
            "linear1.weight": self.q, "linear1.bias": self.q_bias,
        }  # fmt: skip
        loaded = {}
        for name, target in targets.items():
            key = prefix + name
            if key not in state_dict:
                raise KeyError(f"load_mfb_state_dict: {key} is missing from the state dict")
            value = state_dict[key].T if name.endswith("weight") else state_dict[key]
            if value.shape != target.shape:
                raise ValueError(
                    f"load_mfb_state_dict: {key} has shape {tuple(state_dict[key].shape)}, expected "
                    f"{tuple(reversed(target.shape))}"
                )
            loaded[target] = value
        with torch.no_grad():  # only once all of them fit
            for target, value in loaded.items():
                target.copy_(value)
        known = {prefix + name for name in targets}
        return [key for key in state_dict if key.startswith(prefix) and key not in known]

    def extra_repr(self) -> str:
        return (
            f"{self.a_features}, {self.v_features}, {self.out_features}, factor={self.factor}, "
            f"bias={self.p_bias is not None}, adaptive={self.adaptive}, dropout={self.dropout}, "
            f"normalize={self.normalize}, backend={self.backend}"
        )


class TrunkFactorizedBilinearPooling(nn.Module):
    """Per-trunk factorized bilinear pooling, see `fbp_kernels.trunk_fbp`.

    Args:
        a_features: C.
        v_features: D.
        out_features: O.
        factor: K.
        trunks: H.
        bias: add a bias to the projections of every trunk.
        dropout: probability of dropping an element of the product, in training.
        normalize: end with `fbp_kernels.power_normalize`.
        backend: which kernels run it.
        device: of the parameters.
        dtype: of the parameters.

    Parameters: p (H, C, O * K), q (H, D, O * K) and, with `bias`, p_bias and q_bias (H, O * K).
    """

    def __init__(
        self,
        a_features: int,
        v_features: int,
        out_features: int,
        factor: int,
        trunks: int,
        bias: bool = False,
        dropout: float = 0.0,
        normalize: bool = False,
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _positive(
            a_features=a_features, v_features=v_features,
            out_features=out_features, factor=factor, trunks=trunks,
        )  # fmt: skip
        self.a_features, self.v_features = a_features, v_features
        self.out_features, self.factor, self.trunks = out_features, factor, trunks
        self.dropout, self.normalize = dropout, normalize
        self.backend = backend
        columns = out_features * factor
        self.p = _weight(trunks, a_features, columns, device=device, dtype=dtype)
        self.q = _weight(trunks, v_features, columns, device=device, dtype=dtype)
        self.p_bias = _weight(trunks, columns, device=device, dtype=dtype) if bias else None
        self.q_bias = _weight(trunks, columns, device=device, dtype=dtype) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters as `torch.nn.Linear` draws its own, uniform within 1 / sqrt(width)."""
        _draw(self.a_features, self.p, self.p_bias)
        _draw(self.v_features, self.q, self.q_bias)

    def forward(self, a: Tensor, v: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Pools a (B, H, C) and v (B, H, D) into (B, O); `lengths` (B,) counts the trunks of each row."""
        pooled = ops.trunk_fbp(
            a, v, self.p, self.q, self.factor,
            p_bias=self.p_bias, q_bias=self.q_bias, lengths=lengths,
            dropout=self.dropout, training=self.training, backend=self.backend,
        )  # fmt: skip
        return _normalized(pooled, self.normalize, self.backend)

    def extra_repr(self) -> str:
        return (
            f"{self.a_features}, {self.v_features}, {self.out_features}, factor={self.factor}, "
            f"trunks={self.trunks}, bias={self.p_bias is not None}, dropout={self.dropout}, "
            f"normalize={self.normalize}, backend={self.backend}"
        )


class AdaptiveMultiLevelFBP(nn.Module):
    """Adaptive, multi-level factorized bilinear pooling, see `fbp_kernels.am_fbp`.

    Args:
        a_features: C.
        v_features: D.
        out_features: O_G, outputs of the global part.
        factor: K_G.
        trunk_out_features: O_M, outputs of the per-trunk part.
        trunk_factor: K_M.
        trunks: H.
        adaptive: weigh the modalities by their norms in the global part.
        dropout: probability of dropping an element of the products, in training.
        normalize: end with `fbp_kernels.power_normalize`, each part by itself.
        backend: which kernels run it.
        device: of the parameters.
        dtype: of the parameters.

    Parameters: p (C, O_G * K_G), q (D, O_G * K_G), p_trunks (H, C, O_M * K_M), q_trunks (H, D, O_M * K_M).
    """

    def __init__(
        self,
        a_features: int,
        v_features: int,
        out_features: int,
        factor: int,
        trunk_out_features: int,
        trunk_factor: int,
        trunks: int,
        adaptive: bool = True,
        dropout: float = 0.0,
        normalize: bool = False,
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _positive(
            a_features=a_features, v_features=v_features, out_features=out_features, factor=factor,
            trunk_out_features=trunk_out_features, trunk_factor=trunk_factor, trunks=trunks,
        )  # fmt: skip
        self.a_features, self.v_features = a_features, v_features
        self.out_features, self.factor = out_features, factor
        self.trunk_out_features, self.trunk_factor = trunk_out_features, trunk_factor
        self.trunks, self.adaptive = trunks, adaptive
        self.dropout, self.normalize = dropout, normalize
        self.backend = backend
        columns, trunk_columns = out_features * factor, trunk_out_features * trunk_factor
        self.p = _weight(a_features, columns, device=device, dtype=dtype)
        self.q = _weight(v_features, columns, device=device, dtype=dtype)
        self.p_trunks = _weight(trunks, a_features, trunk_columns, device=device, dtype=dtype)
        self.q_trunks = _weight(trunks, v_features, trunk_columns, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters as `torch.nn.Linear` draws its own, uniform within 1 / sqrt(width)."""
        _draw(self.a_features, self.p, self.p_trunks)
        _draw(self.v_features, self.q, self.q_trunks)

    def forward(
        self,
        a: Tensor,
        v: Tensor,
        a_trunks: Tensor,
        v_trunks: Tensor,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Pools a (B, C), v (B, D), a_trunks (B, H, C) and v_trunks (B, H, D) into (B, O_G + O_M)."""
        pooled = ops.am_fbp(
            a, v, a_trunks, v_trunks, self.p, self.q, self.p_trunks, self.q_trunks,
            self.factor, self.trunk_factor, adaptive=self.adaptive, lengths=lengths,
            dropout=self.dropout, training=self.training, backend=self.backend,
        )  # fmt: skip
        if not self.normalize:
            return pooled
        parts = pooled.split([self.out_features, self.trunk_out_features], dim=1)
        return torch.cat([_normalized(part, True, self.backend) for part in parts], dim=1)

    def extra_repr(self) -> str:
        return (
            f"{self.a_features}, {self.v_features}, {self.out_features}, factor={self.factor}, "
            f"trunk_out_features={self.trunk_out_features}, trunk_factor={self.trunk_factor}, "
            f"trunks={self.trunks}, adaptive={self.adaptive}, dropout={self.dropout}, "
            f"normalize={self.normalize}, backend={self.backend}"
        )


class AttentionPool(nn.Module):
    """Attention over frames with global and per-trunk sums, see `fbp_kernels.attention_pool`.

    Args:
        features: C.
        attention_features: A.
        trunks: H.
        scale: factor of the scores (lambda).
        backend: which kernels run it.
        device: of the parameters.
        dtype: of the parameters.

    Parameters: weight (C, A), bias (A,), query (A,).
    """

    def __init__(
        self,
        features: int,
        attention_features: int,
        trunks: int = 1,
        scale: float = 1.0,
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _positive(features=features, attention_features=attention_features, trunks=trunks)
        self.features, self.attention_features = features, attention_features
        self.trunks, self.scale = trunks, scale
        self.backend = backend
        self.weight = _weight(features, attention_features, device=device, dtype=dtype)
        self.bias = _weight(attention_features, device=device, dtype=dtype)
        self.query = _weight(attention_features, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters as `torch.nn.Linear` draws its own, uniform within 1 / sqrt(width)."""
        _draw(self.features, self.weight, self.bias)
        _draw(self.attention_features, self.query)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Pools x (B, T, C) into (B, C) and (B, H, C), and gives the weights (B, T)."""
        return ops.attention_pool(
            x, self.weight, self.bias, self.query, self.scale,
            trunks=self.trunks, lengths=lengths, backend=self.backend,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"{self.features}, {self.attention_features}, trunks={self.trunks}, "
            f"scale={self.scale}, backend={self.backend}"
        )


class LocalResponseNorm(nn.LocalResponseNorm):
    """`torch.nn.LocalResponseNorm` with an optional ReLU before it, see `fbp_kernels.local_response_norm`.

    Args:
        size: channels of the window.
        alpha: weight of the mean square.
        beta: exponent.
        k: added before the power.
        relu: apply a ReLU first.
        backend: which kernels run it.
    """

    def __init__(
        self,
        size: int = 5,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 1.0,
        *,
        relu: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__(size, alpha, beta, k)
        self.relu = relu
        self.backend = backend

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (N, C, *) across channels."""
        return ops.local_response_norm(
            input, self.size, self.alpha, self.beta, self.k, relu=self.relu, backend=self.backend
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, relu={self.relu}, backend={self.backend}"


class BatchNorm(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` for clips of different lengths, with an optional ReLU, see `fbp_kernels.batch_norm`.

    In training it normalises with the statistics of the batch and moves the running ones, in evaluation with the
    running ones; parameters, buffers and what they mean are those of `torch.nn.BatchNorm2d`.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: how far the running statistics move towards those of a batch; None averages over all batches.
        relu: end with a ReLU.
        backend: which kernels run it in training; evaluation is PyTorch's own.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        relu: bool = False,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, device=device, dtype=dtype)
        self.relu = relu
        self.backend = backend

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalises x (N, C, H, W), of which the first `lengths` (N,) of W count; the rest becomes 0."""
        self._check_input_dim(input)
        if lengths is None and self.training and input.numel() == input.shape[1]:
            raise ValueError(
                "Expected more than 1 value per channel when training, got input of shape "
                f"{tuple(input.shape)}"
            )
        kind, dtype = input.device.type, input.dtype
        chosen = backends.resolve("batch_norm", self.backend, kind, dtype, (input,))
        reference = chosen == "reference"
        if not self.training or (reference and lengths is None):
            y = super().forward(input)  # one pass, where the definition takes several
            if lengths is not None:
                alive = torch.arange(y.shape[-1], device=y.device) < lengths[:, None]
                y = y.masked_fill_(~alive[:, None, None, :], 0.0)
            return y.relu_() if self.relu else y
        y, mean, var = ops.batch_norm(
            input, self.weight, self.bias,
            lengths=lengths, eps=self.eps, relu=self.relu, backend=self.backend,
        )  # fmt: skip
        if lengths is None:
            lengths = torch.full((), input.shape[0] * input.shape[3], device=input.device)
        self._track(mean, var, lengths.sum() * input.shape[2])
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Moves the running statistics towards those of `count` values, the variance without its bias."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        unbiased = var * count / (count - 1).clamp(min=1)
        for running, batch in ((self.running_mean, mean), (self.running_var, unbiased)):
            running += (batch - running) * momentum

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, relu={self.relu}, backend={self.backend}"


def _positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}, expected at least 1")


def _weight(*shape: int, device: Any, dtype: torch.dtype | None) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))


def _draw(width: int, *parameters: nn.Parameter | None) -> None:
    bound = 1 / math.sqrt(width)
    for parameter in parameters:
        if parameter is not None:
            nn.init.uniform_(parameter, -bound, bound)


def _normalized(pooled: Tensor, normalize: bool, backend: str | None) -> Tensor:
    return ops.power_normalize(pooled, backend=backend) if normalize else pooled
