"""Logistic regression on shares with a ridge, for many weightings of the same rows at once."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from stages.core.bootstrap import Floats

_STEPS = 100
_HALVINGS = 30
_ENOUGH = 1e-8
"""Newton's method stops where no coefficient moves by more."""


def fit(
    design: Floats,
    target: Floats,
    weights: Floats,
    ridge: float,
    start: Floats | None = None,
    offset: Floats | None = None,
) -> Floats:
    """Coefficients (fits, columns) that minimise, for each row of weights v,

        sum_i v_i [log(1 + exp(z_i)) - y_i z_i] + (ridge / 2) |w|^2,   z = design w + offset,

    which is the log loss of shares y in [0, 1]. Convex, and strictly so for ridge > 0: one minimum, always finite.
    Newton's method with halved steps where a full one does not descend.

    Args:
        design: (rows, columns). target: (rows,) of [0, 1]. weights: (fits, rows), not negative.
        start: (columns,): where to begin. offset: (rows,), known parts of z.
    """
    columns = design.shape[1]
    known = np.zeros(len(design)) if offset is None else offset
    found = np.zeros((len(weights), columns)) if start is None else np.tile(start, (len(weights), 1))
    loss = _loss(found, design, target, weights, ridge, known)
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), columns * columns)
    for _ in range(_STEPS):
        likely = expit(found @ design.T + known)
        slope = (weights * (likely - target)) @ design + ridge * found
        curve = ((weights * likely * (1 - likely)) @ products).reshape(-1, columns, columns) + ridge * np.eye(columns)
        step = np.linalg.solve(curve, slope[:, :, None])[:, :, 0]
        found, loss, moved = _descend(found, step, loss, (design, target, weights, ridge, known))
        if moved < _ENOUGH:
            break
    return found


def _loss(found: Floats, design: Floats, target: Floats, weights: Floats, ridge: float, known: Floats) -> Floats:
    z = found @ design.T + known
    return np.asarray(
        (weights * (np.logaddexp(0, z) - target * z)).sum(axis=1) + 0.5 * ridge * (found**2).sum(axis=1),
        dtype=np.float64,
    )


def _descend(
    found: Floats, step: Floats, loss: Floats, problem: tuple[Floats, Floats, Floats, float, Floats]
) -> tuple[Floats, Floats, float]:
    """Each fit one step further, by the largest of 1, 1/2, 1/4, ... that does not make it worse; 0 if none does."""
    size = np.ones(len(found))
    tolerance = 1e-12 * (1 + np.abs(loss))  # rounding, where a fit has arrived
    for _ in range(_HALVINGS):
        tried = found - size[:, None] * step
        reached = _loss(tried, *problem)
        worse = reached > loss + tolerance
        if not worse.any():
            break
        size[worse] /= 2
    else:
        size[worse] = 0.0
        tried = found - size[:, None] * step
        reached = np.where(worse, loss, reached)
    return tried, reached, float(np.abs(size[:, None] * step).max())
