"""A budget of seconds for audits, in whichever process a cell is measured."""

from controls import audit_run, budgets
from controls.axis_causal import Effort
from controls.budgets import Spending
from controls.judging import Budget

SMALL = Spending(700, 400, 60, Budget(99, 39, 2, Effort(4, 8, 4, 39, 2)), 19, 0, 0)
_measure = audit_run.measure


def measure(settings, cell, seed):
    """An audit's cell; workers have not seen what a test has put in the place of `quick`."""
    budgets.BUDGETS["quick"] = SMALL
    return _measure(settings, cell, seed)
