"""Compares results and gradients of our backends with float64, at the sizes that are measured."""

from .names import asked_as, plain
from .plan import OperatorPlan
from .suite import Choice, operator_suite


def run_parity(choice: Choice, operators: list[str]) -> int:
    """Prints how much of its allowed error every backend takes at every case.

    The rule is that of `bench.verify`: at most twice the error of the reference in the same dtype, plus one unit
    in the last place.

    Returns:
        0, or 1 where a backend is wrong or nothing could be compared.
    """
    width = 58
    print(f"{'case':<{width}}{'backend':<18}{'of the allowed error':>20}")
    compared, wrong = 0, 0
    for operator in operators:
        for plan in operator_suite(operator)(choice):
            assert isinstance(plan, OperatorPlan)
            names = [n for n in choice.names(plan) if asked_as(n) in choice.backends]
            checked = plan.check([n for n in names if n == plain(n)])
            for name, share in checked.worst.items():
                verdict = f"  WRONG: {checked.wrong[name]}" if name in checked.wrong else ""
                print(f"{plan.name:<{width}}{name:<18}{share:>20.0%}{verdict}", flush=True)
            for name, why in checked.left_out.items():
                print(f"{plan.name:<{width}}{name:<18} left out: {why}", flush=True)
            compared += len(checked.worst)
            wrong += len(checked.wrong)
    print(f"{compared} compared, {wrong} wrong")
    return 1 if wrong or not compared else 0
