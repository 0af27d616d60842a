"""Parallax against a depth prior, where the two contradict each other: which of them is wrong (spec 3C).

They are independent witnesses. Where both are right, what parallax saw correlates with the prior; where it does not,
one of them is wrong, and only what is known beforehand can tell which. Cameras go wrong where the flow holds them
loosely (`uncertainty.camera_deviation` s), networks at unfamiliar images. With rho the correlation of the two log
inverse depths, of which a clip has some n = 8 independent looks,

    unrelated   f0(rho) = 15/8 (1 - rho^2)^((n - 4) / 2)   (the correlation of fields that know nothing of another)
    related     f1(rho) = 3 rho^2

and a share j of clips of which a prior knows nothing, the odds that parallax is wrong are

    odds = p f0 / ((1 - p) ((1 - j) f1 + j f0)),           p(s) = 0.01 + 0.2 s^2 / (s^2 + 0.15^2),   j = 0.07

Depth is then a geometric mixture with the prior's weight odds^3 / (1 + odds^3): between the mean of the two (odds^1, of
least squared error) and the likelier of the two (odds^infinity, of least absolute error).
"""

from __future__ import annotations

FIRM_WRONG, LOOSE_WRONG = 0.01, 0.2  # share of clips whose cameras are wrong: always, and more where they are loose
LOOSE = 0.15  # camera deviation half-way between the two
JUNK = 0.07  # share of clips of which a prior knows nothing
SHARPNESS = 3  # exponent of the odds


def weight_of_prior(correlation: float, deviation: float) -> float:
    """Weight in 0..1 of a prior against what parallax saw.

    Args:
        correlation: of the two log inverse depths where parallax saw something.
        deviation: `uncertainty.camera_deviation`.
    """
    rho = min(max(correlation, 0.0), 1.0)
    unrelated, related = 15 / 8 * (1 - rho**2) ** 2, 3 * rho**2
    wrong = FIRM_WRONG + LOOSE_WRONG * deviation**2 / (deviation**2 + LOOSE**2)
    odds = wrong * unrelated / ((1 - wrong) * ((1 - JUNK) * related + JUNK * unrelated))
    return odds**SHARPNESS / (1 + odds**SHARPNESS)
