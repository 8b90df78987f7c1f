"""The kernels of a program for a GPU: products of matrices, and the bytes that each kernel moves."""

from pathlib import Path

import pytest

from solo.planning.hlo import parse_module
from solo.planning.kernels import Product, find_kernels

PROGRAM = (Path(__file__).parent / "golden" / "gpu.hlo").read_text()


@pytest.fixture(scope="module")
def kernels() -> dict:
    return {each.run.instruction.name: each for each in find_kernels(parse_module(PROGRAM))}


def test_fusions_calls_and_copies_are_kernels_and_collectives_are_not(kernels) -> None:
    assert set(kernels) == {"product", "batched", "weights", "sliced", "saved", "called", "attended", "end"}
    assert [name for name, each in kernels.items() if each.is_attention] == ["attended"]
    assert kernels["attended"].last_dim == 64


def test_products_have_the_sizes_of_their_operands(kernels) -> None:
    assert kernels["product"].products == (Product(1, 64, 16, 32, "bf16"),)
    assert kernels["product"].products[0].flops == 2 * 64 * 16 * 32
    # The sum over 32 inputs in four parts.
    assert kernels["batched"].products == (Product(4, 64, 16, 8, "bf16"),)
    assert kernels["called"].products == (Product(1, 64, 16, 32, "f8e4m3fn"),)
    assert kernels["sliced"].products == ()


def test_kernels_move_their_operands_and_results(kernels) -> None:
    assert kernels["product"].bytes == 2 * (64 * 32 + 32 * 16 + 64 * 16)
    assert kernels["end"].bytes == 2 * 2 * 64 * 16


def test_of_a_stack_of_layers_only_one_is_moved(kernels) -> None:
    # A layer, read and written, and its number.
    assert kernels["sliced"].bytes == 2 * 2 * 64 * 32 + 4
    assert kernels["saved"].bytes == 2 * 4 * 64 + 4
