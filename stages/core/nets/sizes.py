"""Check that a network takes images of a size, before it is built."""

from stages.core.files.errors import UserError


def check_smallest(name: str, field: str, shape: tuple[int, ...], smallest: int) -> None:
    """Raise `UserError` if the images of this shape have fewer than `smallest` pixels in a direction.

    `field` is the recipe's field that decides it.
    """
    _, height, width = shape
    if min(height, width) < smallest:
        raise UserError(
            f"network '{name}' does not take images of {height}x{width}: with this model.{field}, allowed: at least"
            f" {smallest}x{smallest}"
        )


def check_divides(name: str, field: str, found: int, shape: tuple[int, ...], total: int) -> None:
    """Raise `UserError` if the value of the recipe's field `field` does not divide `total`."""
    if total % found:
        _, height, width = shape
        allowed = ", ".join(str(divisor) for divisor in range(1, min(total, 1024) + 1) if total % divisor == 0)
        raise UserError(
            f"network '{name}' does not take images of {height}x{width}: model.{field}: found {found}, allowed:"
            f" {allowed}"
        )
