"""A matrix product that few rows pass quickly: the weights are laid out once, not at every call.

`torch.nn.functional.linear` hands ten rows and a matrix to a product made for many rows, which first copies the matrix
into the order that it needs; for ten rows the copy takes as long as the product. oneDNN, which torch brings along, lays
a matrix out beforehand. (Its operators are those that torch's own compiler uses for frozen weights.)

For every number of rows oneDNN writes a program of its own, which takes a millisecond, and half a megabyte that it
keeps. So rows come in few numbers (`SIZES`), and all programs are written when the matrix is laid out.
"""

import platform
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch.nn import functional

Dense: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""float32 [n, in] to float32 [n, out]."""
SIZES = (*range(1, 17), 24, 32, 64)
"""Rows of one product: a question's tokens as they are; of longer ones and of batches, so many at a time."""
USUAL_ROWS = 16
"""What the layout is chosen for. It serves any number."""


def dense(weight: torch.Tensor, bias: torch.Tensor, *, gelu: bool = False) -> Dense:
    """Return ``rows @ weight.T + bias``, or its GELU, as a function, to float32's rounding.

    Parameters
    ----------
    weight
        float32 [out, in], on the processor. It is copied where oneDNN is there, else kept.
    bias
        float32 [out].
    """
    if not lays_out():
        if gelu:
            return lambda rows: functional.gelu(functional.linear(rows, weight, bias))
        return lambda rows: functional.linear(rows, weight, bias)
    onednn = torch.ops.mkldnn
    laid_out = onednn._reorder_linear_weight(weight, USUAL_ROWS)  # noqa: SLF001  torch has no public name for it
    product_of = onednn._linear_pointwise  # noqa: SLF001  torch has no public name for it
    after: tuple[str, list[float], str] = (
        ("gelu", [], "none") if gelu else ("none", [], "")
    )  # and GELU itself, not tanh's likeness of it

    def product(rows: torch.Tensor) -> torch.Tensor:
        if len(rows) in SIZES:
            return product_of(rows, laid_out, bias, *after)  # type: ignore[no-any-return]  # untyped in torch
        return torch.cat([product(some) for some in torch.split(rows, cuts(len(rows)))])

    for size in SIZES:
        product(weight.new_zeros(size, weight.shape[1]))
    return product


def cuts(rows: int) -> list[int]:
    """Return the sizes, all of `SIZES`, the largest first, that add up to a number of rows."""
    found = []
    while rows:
        found.append(max(size for size in SIZES if size <= rows))
        rows -= found[-1]
    return found


def lays_out() -> bool:
    """Tell whether weights are laid out here: where torch has oneDNN, on the processors that it was measured on."""
    return bool(
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # untyped in torch
        and platform.machine().lower() in ("x86_64", "amd64")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
