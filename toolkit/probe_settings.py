"""What probes accept for settings, each refused in one line where it makes no sense."""

from typing import Any

import numpy as np

from toolkit.errors import check_parameters, require, unknown
from toolkit.probe_inputs import ProbeRows, check_count

_DEVICES = ("auto", "cpu", "cuda")


def check_settings(probe: Any, data: ProbeRows) -> None:
    """Refuse settings of a probe that are out of range, or that these rows cannot be fitted with.

    Raises:
        UserError: those.
    """
    for name in ("l2", "shrinkage"):
        value = getattr(probe, name, None)
        require(value is None or _number(value), f"{name}={value!r}: expected a number of at least 0")
    tolerance = getattr(probe, "tolerance", None)
    positive = tolerance is None or (_number(tolerance) and tolerance > 0)
    require(positive, f"tolerance={tolerance!r}: expected None or a number above 0")
    check_parameters(probe)
    if probe.device not in _DEVICES:
        raise unknown("device", str(probe.device), _DEVICES)
    shrinkage = getattr(probe, "shrinkage", None)
    require(shrinkage is None or shrinkage <= 1, f"shrinkage={shrinkage}: expected a share, at most 1")
    for name, least in (("folds", 2), ("rank", 1), ("hidden", 1), ("max_steps", 1), ("random_state", 0)):
        check_count(getattr(probe, name, least), name, least=least)
    n, d = data.X.shape
    if getattr(probe, "l2", None) == 0:
        require(n > d, f"l2=0 with {n} rows in {d} dimensions: the fit is not unique; give a penalty l2 > 0")
    if shrinkage == 0:
        free = n - len(data.classes)
        require(
            free >= d,
            f"shrinkage=0 with {n} rows of {len(data.classes)} classes in {d} dimensions: the covariance within "
            "classes has no inverse; give a shrinkage > 0",
        )
    weighting = getattr(probe, "class_weight", None)
    require(
        weighting is None or isinstance(weighting, dict) or str(weighting) == "balanced",
        f"class_weight={weighting!r}: expected None, 'balanced' or a dict of label to weight",
    )
    for key in weighting if isinstance(weighting, dict) else ():
        if key not in data.classes.tolist():
            raise unknown("class in class_weight", str(key), [str(c) for c in data.classes])
    if isinstance(weighting, dict):
        given = [weighting.get(c, 1.0) for c in data.classes.tolist()]
        require(
            all(_number(value) for value in given) and any(given),
            f"class_weight={weighting!r}: expected numbers of at least 0, not all of them 0",
        )


def _number(value: Any) -> bool:
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return number and bool(np.isfinite(value) and value >= 0)
