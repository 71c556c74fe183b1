"""The machine's ceilings: the fastest of what was tried, and nobody waits for what is hopeless."""

from collections.abc import Callable

import pytest
import torch

from bench import ceilings
from bench.records import Ceilings


def test_the_fastest_product_counts_and_a_hopeless_one_is_tried_small_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ceilings, "_SIDE", {"cpu": 256})
    monkeypatch.setattr(ceilings, "_COPY", {"cpu": 1000})
    taken = iter([1.0, 0.05, 0.5, 0.25])  # mm and convolution of 64, convolution of 256, copy

    def seconds(run: Callable[[], object], device: str) -> float:
        run()
        return next(taken)

    monkeypatch.setattr(ceilings, "_seconds", seconds)
    found = ceilings.measure("cpu", ["float32"])
    assert found.product == {"float32": "1x1 convolution"}
    assert found.flops == {"float32": 2 * 256**3 / 0.5}
    assert found.bytes == 2 * 1000 / 0.25
    assert next(taken, None) is None


def test_a_product_that_takes_long_is_not_repeated_at_the_large_size_where_another_is_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a busy machine the fastest is not ten times as fast, and the other would take minutes."""
    monkeypatch.setattr(ceilings, "_SIDE", {"cpu": 256})
    monkeypatch.setattr(ceilings, "_COPY", {"cpu": 1000})
    taken = iter([3.0, 1.0, 9.0, 1.0])  # mm and convolution of 64, convolution of 256, copy

    monkeypatch.setattr(ceilings, "_seconds", lambda run, device: next(taken))
    assert ceilings.measure("cpu", ["float32"]).flops == {"float32": 2 * 256**3 / 9.0}
    assert next(taken, None) is None


def test_of_two_measurements_the_higher_counts_each_with_its_product() -> None:
    first = Ceilings({"float32": 1.0, "bfloat16": 5.0}, 3.0, {"float32": "a", "bfloat16": "b"})
    second = Ceilings({"float32": 2.0, "bfloat16": 4.0}, 2.0, {"float32": "c", "bfloat16": "d"})
    assert ceilings.raised(first, second) == Ceilings(
        {"float32": 2.0, "bfloat16": 5.0}, 3.0, {"float32": "c", "bfloat16": "b"}
    )
    third = Ceilings({"float16": 7.0}, 1.0, {"float16": "e"})
    both = ceilings.raised(first, third)
    assert both.flops == {"float32": 1.0, "bfloat16": 5.0, "float16": 7.0}
    assert both.product == {"float32": "a", "bfloat16": "b", "float16": "e"}


def test_products_round_to_tf32_where_its_ceiling_is_measured_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither library of products may; cuDNN would by default."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = matmul.fp32_precision, convolution.fp32_precision
    seen: dict[str, set[tuple[str, str]]] = {}

    def products(device: str, dtype: str) -> list[tuple[float, str]]:
        precisions = matmul.fp32_precision, convolution.fp32_precision
        seen.setdefault(dtype, set()).add(precisions)
        return [(1.0, "torch.mm")]

    monkeypatch.setattr(ceilings, "_products", products)
    monkeypatch.setattr(ceilings, "_copy", lambda device: 1.0)
    ceilings.measure("cpu", ["tf32", "float32", "bfloat16"])
    assert seen["tf32"] == {("tf32", "tf32")}
    assert all("tf32" not in p for d in ("float32", "bfloat16") for p in next(iter(seen[d])))
    assert (matmul.fp32_precision, convolution.fp32_precision) == before
