"""Compares results and gradients of our backends with float64, at the sizes that are measured."""

from .names import asked_as, plain
from .plan import Checked, OperatorPlan
from .suite import Choice, operator_suite

_WIDTH = 58


def run_parity(choice: Choice, operators: list[str]) -> int:
    """Prints what became of every backend at every case: how much of its allowed error it takes, or why there is none.

    The rule is that of `fbp_kernels.correct`. Graphs, which replay what is compared here, are compared where they are
    timed.

    Returns:
        0, or 1 where a backend is wrong or fails, or nothing is right.
    """
    print(f"{'case':<{_WIDTH}}{'backend':<18}{'of the allowed error':>20}")
    right = wrong = left_out = 0
    for operator in operators:
        plans = operator_suite(operator)(choice)
        if not plans:
            print(f"{operator} has none of the shapes asked for")
        for plan in plans:
            assert isinstance(plan, OperatorPlan)
            names = [n for n in choice.names(plan) if asked_as(n) in choice.backends]
            names = [n for n in names if n == plain(n)]
            checked = plan.check(names)
            for name in names:
                print(f"{plan.name:<{_WIDTH}}{name:<18}{_verdict(checked, name)}", flush=True)
            right += len(checked.ready)
            wrong += len(checked.wrong)
            left_out += len(checked.left_out)
    total = right + wrong + left_out
    print(f"{total} asked for: {right} right, {wrong} wrong, {left_out} left out")
    return 1 if wrong or not right else 0


def _verdict(checked: Checked, name: str) -> str:
    if name in checked.left_out:
        return f" left out: {checked.left_out[name]}"
    share = f"{checked.worst[name]:>20.0%}" if name in checked.worst else f"{'-':>20}"
    return f"{share}  WRONG: {checked.wrong[name]}" if name in checked.wrong else share
