"""Runs that nobody measured, with figures that are easy to reckon with."""

from dataclasses import replace
from typing import Any

from bench.records import Case, Ceilings, Measurement, Run, Spread

MACHINE: dict[str, Any] = {
    "device": "Made Up 9000",
    "date": "2026-01-02",
    "processor": "Made Up 9000",
    "threads": 2,
    "instruction_set": "avx2",
    "gpu": None,
    "driver": None,
    "system": "Linux",
    "python": "3.11.7",
    "torch": "2.11.0",
    "triton": None,
    "commit": "0123456789",
}
CEILINGS = Ceilings({"float32": 2e11}, 2e10, {"float32": "2048 x 2048 x 2048"})


def spread(median: float, width: float = 0.1) -> Spread:
    """A median, quartiles half of `width` (a part of it) away, outer percentiles all of it."""
    factors = (1 - width, 1 - width / 2, 1, 1 + width / 2, 1 + width)
    return Spread(*(median * factor for factor in factors))


def measurement(milliseconds: float, **values: Any) -> Measurement:
    """A measurement; ratios may be given by their medians."""
    ratios = {
        peer: ratio if isinstance(ratio, Spread) else spread(ratio)
        for peer, ratio in values.pop("ratios", {}).items()
    }
    return Measurement(spread(milliseconds / 1e3), 20, ratios, **values)


def case(
    operator: str = "fbp",
    label: str = "clip",
    mode: str = "forward",
    *,
    curve: str = "",
    sizes: dict[str, int] | None = None,
    dtype: str = "float32",
    native: float = 2.0,
    ratios: dict[str, Any] | None = None,
    **values: Any,
) -> Case:
    """A case of a native kernel that takes `native` milliseconds and its peers; 0.1 GFLOP, 10 MB, floor 0.5 ms."""
    ratios = {"eager": 1.5, "compile": 1.25, "products": 0.8} if ratios is None else ratios
    kept = None if mode == "forward" else 2**20
    contenders = {
        "native": measurement(native, ratios=ratios, peak_bytes=3 * 2**20, kept_bytes=kept)
    }
    for peer, ratio in ratios.items():
        median = ratio.median if isinstance(ratio, Spread) else ratio
        contenders[peer] = measurement(
            native * median, peak_bytes=6 * 2**20, kept_bytes=None if kept is None else 4 * kept
        )
    made = Case(
        operator,
        label,
        curve,
        sizes or {"B": 32, "C": 256},
        dtype,
        mode,
        flops=1e8,
        bytes=1e7,
        floor_seconds=5e-4,
        contenders=contenders,
    )
    return replace(made, **values)


def run(*cases: Case, **machine: Any) -> Run:
    """A run of those cases."""
    return Run(MACHINE | machine, CEILINGS, list(cases))


def changed(case: Case, contender: str, **values: Any) -> Case:
    """The case with other values of one contender's measurement."""
    measured = replace(case.contenders[contender], **values)
    return replace(case, contenders=case.contenders | {contender: measured})


DEMO: dict[str, Any] = {
    "machine": {"processor": "Made Up 9000", "threads": 2, "torch": "2.11.0"},
    "seconds": {"train am_fbp": 10.2, "train audio": 5.0, "train video": 6.0},
    "scores": {
        "am_fbp": {
            "clips": 120,
            "chance": 0.25,
            "accuracy": 0.75,
            "accuracy_interval": [0.665, 0.819],
            "unweighted_accuracy": 0.7,
        },
        "audio": {"accuracy": 0.5, "accuracy_interval": [0.4, 0.6], "unweighted_accuracy": 0.5},
        "video": {"accuracy": 0.6, "accuracy_interval": [0.5, 0.7], "unweighted_accuracy": 0.6},
    },
    "attention": {
        "am_fbp": {
            "audio": {"clips": 90, "time": 0.515, "attention": 0.824, "ratio": 1.6},
            "video": {"clips": 90, "time": 0.515, "attention": 0.773, "ratio": 1.501},
        },
    },
    "steps": {
        "steps": 200,
        "reference_ms": {"lower": 60.0, "median": 65.0, "upper": 70.0},
        "accelerated_ms": {"lower": 48.0, "median": 50.0, "upper": 52.0},
        "speedup": {"lower": 1.25, "median": 1.3, "upper": 1.35},
        "loss_difference": 1.5,
        "rounding_difference": 1.25,
        "operator_difference": 3e-7,
    },
}

TRAINED_ON: dict[str, Any] = {
    "name": "Made Up 9000",
    "family": "",
    "instruction_set": "AVX2",
    "threads": 2,
    "gpu": None,
}
_KEPT: dict[str, Any] = TRAINED_ON | {"processor": "Made Up 9000", "torch": "2.11.0"}
_ROW = {
    "name": "AM-FBP", "system": "am_fbp", "paper_accuracy": "64.17", "paper_p_value": "0.001", "split": "val",
    "accuracy": "0.8", "accuracy_low": "0.7", "accuracy_high": "0.9", "unweighted_accuracy": "0.81", "f1": "0.79",
    "p_mcnemar_holm": "0.04", "p_bootstrap_holm": "0.03", "against": "g_fbp",
}  # fmt: skip
PAPER: dict[str, Any] = {
    "machine": _KEPT,
    "config": "small",
    "trainings": 19,
    "minutes": 22,
    "tables": {"III": [_ROW]},
    "pictures": ["figure-7-1.png"],
}


def _corpus(name: str, options: list[str], control: dict[str, Any] | None) -> dict[str, Any]:
    measure = [0.875, [0.8, 0.9], 0.0001]
    systems = [
        {"name": n, "clips": 120, "measures": {"accuracy": measure}} for n in ("g_fbp", "m_fbp")
    ]
    pair = {
        "first": "m_fbp",
        "second": "g_fbp",
        "difference": [0.014, [-0.04, 0.07], 0.6],
        "mcnemar": 0.7,
    }
    return {
        "name": name,
        "options": options,
        "control": control,
        "systems": systems,
        "pairs": [pair],
    }


FAIRNESS: dict[str, Any] = {
    "machine": _KEPT,
    "config": "small",
    "seeds": 3,
    "corpora": [
        _corpus("as it is", [], None),
        _corpus(
            "trunks carry nothing",
            ["--expression", "whole"],
            {
                "system": "m_fbp",
                "must_not_beat": "g_fbp",
                "difference": 0.02,
                "p_bootstrap": 0.4,
                "passed": True,
            },
        ),
    ],
}
