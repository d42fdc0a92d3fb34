"""What a result must satisfy before its speed is told."""

from collections.abc import Callable

from torch import Tensor

Check = Callable[[Tensor, Tensor], tuple[bool, str]]
"""(result, expected) -> (whether it is right, what was found)"""


def close(tolerance: float, border: int = 0, outliers: float = 0.0) -> Check:
    """Largest error <= tolerance * largest expected magnitude, `border` pixels left out on every side.

    `outliers`: the share of elements that may be further off, for functions that jump at a threshold or a tie.
    """

    def check(result: Tensor, expected: Tensor) -> tuple[bool, str]:
        if result.shape != expected.shape:
            return False, f"shape {tuple(result.shape)}, expected {tuple(expected.shape)}"
        inside = (..., *[slice(border, -border or None)] * 2) if border else ...
        result, expected = result.to(expected)[inside], expected[inside]
        error = (result - expected).abs() / expected.abs().max().clamp(min=1e-30)
        wrong = ~(error <= tolerance)  # NaN is wrong as well
        worst = f"{error.max():.1e}" if not wrong.any() else f"{error.max():.1e} > {tolerance:g}"
        if not outliers:
            return not wrong.any(), worst
        share = wrong.double().mean().item()
        if share > outliers:
            return False, f"{worst} at {share:.1e} of the elements"
        return True, f"{error[~wrong].max():.1e}" + (f", {share:.0e} jump" if share else "")

    return check


def equal(share: float = 1.0) -> Check:
    """At least this share of the elements is equal."""

    def check(result: Tensor, expected: Tensor) -> tuple[bool, str]:
        if result.shape != expected.shape:
            return False, f"shape {tuple(result.shape)}, expected {tuple(expected.shape)}"
        found = (result.to(expected) == expected).double().mean().item()
        text = "equal" if found == 1 else f"{100 * found:.3f} % equal"
        return found >= share, text if found >= share else f"{text}, less than {100 * share:g} %"

    return check
