"""The operators as modules, with parameters in the standard layout.

Every module takes `backend` ("native", "triton", "reference" or None for the best there is) and keeps
it as an attribute; `fbp_kernels.accelerate` sets it on a whole model.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from . import backends, generator, ops


class _Leaf(nn.Module):
    """A module that symbolic tracing records as one, with its hooks, as it does PyTorch's own."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        for argument in arguments:
            if isinstance(argument, fx.Proxy):
                tracer: Any = argument.tracer
                path = tracer.path_of_module(self)
                return tracer.create_proxy("call_module", path, arguments, named)
        return super().__call__(*arguments, **named)


class FactorizedBilinearPooling(_Leaf):
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


class TrunkFactorizedBilinearPooling(_Leaf):
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


class AdaptiveMultiLevelFBP(_Leaf):
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


class AttentionPool(_Leaf):
    """Attention over frames with global and per-trunk sums, see `fbp_kernels.attention_pool`.

    Args:
        features: C.
        attention_features: A.
        trunks: H.
        scale: factor of the scores (lambda), positive where it is learned.
        learned_scale: whether training changes it; then its logarithm is a parameter, so that it
            stays positive, and the scale is what it begins with.
        backend: which kernels run it.
        device: of the parameters.
        dtype: of the parameters.

    Parameters: weight (C, A), bias (A,), query (A,), and log_scale () where the scale is learned.
    """

    def __init__(
        self,
        features: int,
        attention_features: int,
        trunks: int = 1,
        scale: float = 1.0,
        learned_scale: bool = False,
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _positive(features=features, attention_features=attention_features, trunks=trunks)
        if learned_scale and not scale > 0:
            raise ValueError(f"scale must be positive to be learned, got {scale}")
        self.features, self.attention_features = features, attention_features
        self.trunks, self.scale = trunks, scale
        self.backend = backend
        self.weight = _weight(features, attention_features, device=device, dtype=dtype)
        self.bias = _weight(attention_features, device=device, dtype=dtype)
        self.query = _weight(attention_features, device=device, dtype=dtype)
        self.log_scale = _weight(device=device, dtype=dtype) if learned_scale else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters as `torch.nn.Linear` draws its own, uniform within 1 / sqrt(width)."""
        _draw(self.features, self.weight, self.bias)
        _draw(self.attention_features, self.query)
        if self.log_scale is not None:
            nn.init.constant_(self.log_scale, math.log(self.scale))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Pools x (B, T, C) into (B, C) and (B, H, C), and gives the weights (B, T)."""
        scale = self.scale if self.log_scale is None else self.log_scale.exp()
        return ops.attention_pool(
            x, self.weight, self.bias, self.query, scale,
            trunks=self.trunks, lengths=lengths, backend=self.backend,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"{self.features}, {self.attention_features}, trunks={self.trunks}, "
            f"scale={self.scale}, learned_scale={self.log_scale is not None}, backend={self.backend}"
        )


class LocalResponseNorm(_Leaf, nn.LocalResponseNorm):
    """`torch.nn.LocalResponseNorm` with an optional ReLU before it, see `fbp_kernels.local_response_norm`.

    TorchScript, which knows no operators of ours, runs PyTorch's own.

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
        if torch.jit.is_scripting():
            x = F.relu(input) if self.relu else input
            return F.local_response_norm(x, self.size, self.alpha, self.beta, self.k)
        else:  # a branch, so that TorchScript does not see it
            if isinstance(input, fx.Proxy):  # it is the root, of which no call is recorded
                return super().forward(F.relu(input) if self.relu else input)
            return ops.local_response_norm(
                input, self.size, self.alpha, self.beta, self.k,
                relu=self.relu, backend=self.backend,
            )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, relu={self.relu}, backend={self.backend}"


class Dropout(_Leaf, nn.Dropout):
    """`torch.nn.Dropout`, whose masks many threads draw and nobody keeps, see `fbp_kernels.dropout`.

    Results are those of PyTorch's own to the bit, and so is the state in which torch's generator is left. PyTorch's own
    runs where it takes no time (in evaluation, with p of 0 or 1), where it was measured to be faster, in place, under
    `torch.vmap` and other transforms, and where a call is traced. If nobody asks for a backend, it does as well where
    it draws other masks: by MKL, on Intel's processors.

    Args:
        p: probability of dropping an element.
        inplace: write the result into the input.
        backend: which kernels run it.
    """

    def __init__(
        self, p: float = 0.5, inplace: bool = False, *, backend: str | None = None
    ) -> None:
        super().__init__(p, inplace)
        self.backend = backend

    def forward(self, input: Tensor) -> Tensor:
        """Drops elements of a tensor of any shape, in training."""
        if torch.jit.is_scripting():
            return F.dropout(input, self.p, self.training, self.inplace)
        else:  # a branch, so that TorchScript does not see it
            if self.training and self._fused(input):
                return ops.dropout(input, self.p, backend="native")
            return super().forward(input)

    def _fused(self, x: Any) -> bool:
        """Whether a call in training is for our kernel."""
        if self.inplace or not 0 < self.p < 1 or torch.compiler.is_compiling():
            return False
        if torch.jit.is_tracing() or not _plain(x) or x.numel() == 0:
            return False
        chosen = backends.resolve("dropout", self.backend, x.device.type, x.dtype, (x,))
        return chosen == "native" and (self.backend is not None or generator.draws_alike())

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, backend={self.backend}"


class Conv2d(_Leaf, nn.Conv2d):
    """`torch.nn.Conv2d`, of whose weights a kernel of ours computes the gradient, see `fbp_kernels.conv2d`.

    PyTorch's own runs where ours was not measured to be faster; in float32 and float64 where that gradient is not due
    or x is not channels last (the copies would cost more); with groups, dilation or padding by other than zeros; on
    pictures without a batch; under transforms of `torch.func`, and where a call is traced.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: of both dimensions, or of each; and what else `torch.nn.Conv2d` takes, by name.
        backend: which kernels run it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        backend: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **options)
        self.backend = backend

    def forward(self, input: Tensor) -> Tensor:
        """Convolves x (N, C, H, W)."""
        if torch.jit.is_scripting():
            return self._conv_forward(input, self.weight, self.bias)
        else:  # a branch, so that TorchScript does not see it
            if self._fused(input):
                return ops.conv2d(
                    input,
                    self.weight,
                    self.bias,
                    stride=self.stride,
                    padding=self._zeros(),
                    backend="native",
                )
            return super().forward(input)

    def plain(self) -> str:
        """Why PyTorch's own always runs, or an empty string where our kernel may."""
        for name, value, expected in (
            ("groups", self.groups, 1),
            ("dilation", self.dilation, (1, 1)),
            ("padding_mode", self.padding_mode, "zeros"),
        ):
            if value != expected:
                return f"its {name} is {value!r}, expected {expected!r}"
        left, right, top, bottom = self._reversed_padding_repeated_twice
        if (left, top) != (right, bottom):
            return "its padding is not the same on both sides"
        return ""

    def _zeros(self) -> tuple[int, int]:
        """Padding of each dimension, in numbers."""
        left, _, top, _ = self._reversed_padding_repeated_twice
        return top, left

    def _fused(self, x: Any) -> bool:
        """Whether a call is for our kernel."""
        weight = self.weight
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or self.plain():
            return False
        if not (_plain(x) and _plain(weight)) or x.dim() != 4:
            return False
        kind, dtype = x.device.type, x.dtype
        # The meta device has no autocast, and raises where it is asked whether that is enabled.
        if kind != "meta" and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        if dtype in (torch.float32, torch.float64):
            if not (torch.is_grad_enabled() and weight.requires_grad):
                return False
            if not x.is_contiguous(memory_format=torch.channels_last):
                return False
        return backends.resolve("conv2d", self.backend, kind, dtype, (x, weight)) == "native"

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, backend={self.backend}"


class BatchNorm(_Leaf, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` for clips of different lengths, see `fbp_kernels.batch_norm`.

    In training it normalises with the statistics of the batch and moves the running ones, in evaluation with the
    running ones; parameters, buffers and what they mean are those of `torch.nn.BatchNorm2d`.

    A ReLU that follows can be had in the same pass. It is never hidden in here, since whoever takes this for a batch
    norm, as PyTorch's own converters do, would lose it: a caller asks for it in the call, or `relu` makes a
    `BatchNormReLU` of it.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: how far the running statistics move towards those of a batch; None averages over all batches.
        affine: have a weight and a bias.
        track_running_stats: have running statistics; without them it uses the batch's in evaluation, too.
        relu: give a `BatchNormReLU` with these arguments instead.
        backend: which kernels run it; with the running statistics it is PyTorch's own.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __new__(cls, *arguments: Any, relu: bool = False, **options: Any) -> Any:
        if not relu:
            return super().__new__(cls)
        if cls is not BatchNorm:
            raise TypeError(f"{cls.__name__}: relu is True, expected False in a subclass")
        return BatchNormReLU(*arguments, **options)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        relu: bool = False,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype
        )
        self.backend = backend

    def forward(self, input: Tensor, lengths: Tensor | None = None, relu: bool = False) -> Tensor:
        """Normalises x (N, C, H, W), of which the first `lengths` (N,) of W count; the rest becomes 0."""
        return _batch_norm(self, input, lengths, relu, self.backend)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, backend={self.backend}"


class BatchNormReLU(nn.Module):
    """A `torch.nn.BatchNorm2d` and a `torch.nn.ReLU`, computed in one pass, see `fbp_kernels.batch_norm`.

    Both are children that everybody finds: what replaces them (`SyncBatchNorm.convert_sync_batchnorm`,
    `torch.ao.quantization.fuse_modules`), traces them or hooks them gets what it would of a `torch.nn.Sequential`, and
    from then on they are called one after the other. State dicts of a `BatchNorm` or `torch.nn.BatchNorm2d` are
    loaded too.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: how far the running statistics move towards those of a batch; None averages over all batches.
        affine: have a weight and a bias.
        track_running_stats: have running statistics; without them it uses the batch's in evaluation, too.
        backend: which kernels run it; with the running statistics it is PyTorch's own.
        device: of the parameters.
        dtype: of the parameters.

    Parameters and buffers: those of `torch.nn.BatchNorm2d`, in `norm`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype
        )
        self.relu = nn.ReLU()
        self.backend = backend
        self.register_load_state_dict_pre_hook(_into_the_norm)

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalises x (N, C, H, W), of which the first `lengths` (N,) of W count; the rest becomes 0.

        Raises:
            ValueError: lengths, where norm and ReLU have to be called one after the other.
        """
        if torch.jit.is_scripting():
            assert lengths is None, "BatchNormReLU: lengths are given, expected none in TorchScript"
            return self.relu(self.norm(input))
        else:  # a branch, so that TorchScript does not see it
            apart = self.apart()
            if not apart and not isinstance(input, fx.Proxy):
                return _batch_norm(self.norm, input, lengths, True, self.backend)
            if lengths is not None:
                raise ValueError(
                    "BatchNormReLU: lengths are given, expected none where norm and ReLU are called one after the"
                    f" other ({apart or 'they are traced'}); fbp_kernels.BatchNorm takes lengths"
                )
            return self.relu(self.norm(input))

    def apart(self) -> str:
        """Why norm and ReLU are called one after the other, or an empty string where one pass serves both."""
        for name, child, kind in (
            ("norm", self.norm, nn.BatchNorm2d),
            ("relu", self.relu, nn.ReLU),
        ):
            if type(child) is not kind:
                return f"its {name} is a {type(child).__name__}"
            if _watched(child):
                return f"there are hooks on its {name}"
        return ""

    def extra_repr(self) -> str:
        return f"backend={self.backend}"


def _into_the_norm(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Gives the names of a batch norm by itself the prefix that they have in a `BatchNormReLU`."""
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        if prefix + name in state_dict:
            state_dict[f"{prefix}norm.{name}"] = state_dict.pop(prefix + name)


def _batch_norm(
    norm: nn.BatchNorm2d, x: Tensor, lengths: Tensor | None, relu: bool, backend: str | None
) -> Tensor:
    """What `norm` computes of x, where only `lengths` count, then a ReLU."""
    norm._check_input_dim(x)
    of_batch = norm.training or norm.running_mean is None
    if of_batch and lengths is None and x.numel() == x.shape[1]:
        raise ValueError(
            "Expected more than 1 value per channel when training, got input of shape "
            f"{tuple(x.shape)}"
        )
    chosen = backends.resolve("batch_norm", backend, x.device.type, x.dtype, (x,))
    if not of_batch or (chosen == "reference" and lengths is None):
        y = nn.BatchNorm2d.forward(norm, x)  # one pass, where the definition takes several
        if lengths is not None:
            alive = torch.arange(y.shape[-1], device=y.device) < lengths[:, None]
            y = y.masked_fill_(~alive[:, None, None, :], 0.0)
        return y.relu_() if relu else y
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    weight, bias = (
        x.new_full((x.shape[1],), default, dtype=wide) if given is None else given
        for given, default in ((norm.weight, 1.0), (norm.bias, 0.0))
    )
    y, mean, var = ops.batch_norm(
        x, weight, bias, lengths=lengths, eps=norm.eps, relu=relu, backend=chosen
    )
    if norm.training and norm.track_running_stats and norm.running_mean is not None:
        rows = x.shape[0] * x.shape[3] if lengths is None else lengths.sum()
        _track(norm, mean, var, rows * x.shape[2])
    return y


def _track(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: Tensor | int) -> None:
    """Moves the running statistics towards those of `count` values, the variance without its bias."""
    running_mean, running_var = norm.running_mean, norm.running_var
    batches, momentum = norm.num_batches_tracked, norm.momentum
    assert running_mean is not None
    assert running_var is not None
    assert batches is not None
    batches.add_(1)
    others = (count - 1).clamp(min=1) if isinstance(count, Tensor) else max(count - 1, 1)
    for running, batch in ((running_mean, mean), (running_var, var * count / others)):
        # A quotient of integers would be float32.
        share = batches.to(running.dtype).reciprocal() if momentum is None else momentum
        running.lerp_(batch.to(running.dtype), share)


def _plain(x: Any) -> bool:
    """Whether x is a tensor with memory of its own: neither a subclass nor what a transform of `torch.func` sees."""
    if type(x) not in (Tensor, nn.Parameter):
        return False
    try:
        x.data_ptr()
    except RuntimeError:
        return False
    return True


def _watched(module: nn.Module) -> bool:
    """Whether anybody is told of the module's calls, or of those of all modules."""
    # There is no public alternative: hooks can be registered and removed, but not asked for.
    own = module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks
    return any(own) or bool(module._backward_hooks) or nn.modules.module._has_any_global_hook()


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
