"""The products of every weight format, against plain arithmetic and against PyTorch's operations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from native_kernels import find_kernels, needs_kernels
from penstock.base.errors import CheckpointError
from penstock.engine.formats import weight_bytes
from penstock.engine.linear import Int4Linear, Int8Linear
from penstock.engine.native.runner import interleave_gates, pack

pytestmark = needs_kernels
Floats = NDArray[np.float32]
FORMATS = ("float32", "bfloat16", "int8", "int4")
# Outputs and inputs: below a panel, not a multiple of anything, shapes of real models.
SHAPES = ((1, 1), (33, 48), (131, 100), (1152, 896), (64, 4864))
ROWS = (1, 2, 3, 5, 8, 12, 13, 16, 29)
# Largest error of one weight, as a share of the largest of its row.
STEP = {"float32": 0.0, "bfloat16": 2**-8, "int8": 0.5 / 127, "int4": 1 / 8}


def random_weight(outputs: int, inputs: int) -> Floats:
    """The same for the same shape."""
    return np.random.default_rng(outputs * 10_000 + inputs).standard_normal((outputs, inputs), np.float32)


def packed(weight_format: str, weight: Floats, bias: Floats | None = None) -> object:
    """A weight in two parts, the second first."""
    kernel = find_kernels().Weight(weight_format, *weight.shape)
    middle = len(weight) // 2
    for start, rows in ((middle, weight[middle:]), (0, weight[:middle])):
        kernel.pack(find_kernels().Pool(2), start, rows)
    if bias is not None:
        kernel.set_bias(bias)
    return kernel


def as_multiplied(x: Floats, weight_format: str) -> Floats:
    """What a row of activations becomes before it is multiplied."""
    if weight_format not in ("int8", "int4"):
        return x
    scale = np.abs(x).max(1, keepdims=True) / np.float32(127)
    return np.rint(x / scale) * scale


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_product_is_the_product_of_what_is_stored(weight_format: str, shape: tuple[int, int]) -> None:
    """For every number of rows: sums differ from float64's by rounding alone."""
    weight, bias = random_weight(*shape), random_weight(1, shape[0])[0]
    kernel = packed(weight_format, weight, bias)
    stored = np.stack([kernel.unpack(i) for i in range(shape[0])])
    for rows in ROWS:
        x = random_weight(rows, shape[1])
        expected = as_multiplied(x, weight_format).astype(np.float64) @ stored.T + bias
        np.testing.assert_allclose(
            kernel(find_kernels().Pool(2), x), expected, atol=3e-5 * np.abs(expected).max()
        )


@pytest.mark.parametrize("weight_format", FORMATS)
def test_what_is_stored_is_near_the_weight(weight_format: str) -> None:
    """Within half a step of its row's scale; int4 has one per 32 weights, and no +8 to mirror its -8."""
    weight = random_weight(40, 96)
    kernel = packed(weight_format, weight)
    stored = np.stack([kernel.unpack(i) for i in range(40)])
    groups = weight.reshape(40, -1, 32) if weight_format == "int4" else weight[:, None, :]
    bound = np.abs(groups).max(-1, keepdims=True) * STEP[weight_format] * 1.01
    assert (np.abs(stored.reshape(groups.shape) - groups) <= bound).all()


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_row_does_not_depend_on_its_company(weight_format: str) -> None:
    """Bit for bit: alone, in any batch, on one thread or three."""
    kernel, x = packed(weight_format, random_weight(200, 130)), random_weight(29, 130)
    alone = np.concatenate([kernel(find_kernels().Pool(1), x[i : i + 1]) for i in range(29)])
    for rows in ROWS:
        for threads in (1, 3):
            assert (kernel(find_kernels().Pool(threads), x[:rows]) == alone[:rows]).all()


@pytest.mark.parametrize(
    ("weight_format", "method", "tolerance"), [("int8", Int8Linear, 1e-6), ("int4", Int4Linear, 0.02)]
)
def test_pytorchs_operations_compute_the_same(weight_format: str, method: type, tolerance: float) -> None:
    """The fallback quantises as the kernels do; for int4 it multiplies in bfloat16."""
    weight, x = random_weight(131, 100), random_weight(7, 100)
    ours = packed(weight_format, weight)(find_kernels().Pool(2), x)
    theirs = method(torch.from_numpy(weight))(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(ours).max())


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_weight_takes_the_bytes_that_were_planned(weight_format: str) -> None:
    """Or the memory arithmetic at start would be a guess."""
    for outputs, inputs in SHAPES:
        kernel = find_kernels().Weight(weight_format, outputs, inputs)
        assert kernel.nbytes == weight_bytes(weight_format, outputs, inputs)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_activations_that_are_no_numbers_reach_the_result(weight_format: str) -> None:
    """Or a broken row would look like an answer; its neighbours are as they were."""
    kernel, x = packed(weight_format, random_weight(64, 64)), random_weight(3, 64)
    pool = find_kernels().Pool(1)
    for bad in (float("nan"), float("inf"), float("-inf")):
        broken = x.copy()
        broken[1, 5] = bad
        out = kernel(pool, broken)
        assert not np.isfinite(out[1]).any()
        assert (out[[0, 2]] == kernel(pool, x)[[0, 2]]).all()


@pytest.mark.parametrize("weight_format", FORMATS)
def test_rows_of_zeros_give_zeros(weight_format: str) -> None:
    """No scale is divided by zero."""
    kernel = packed(weight_format, np.zeros((40, 70), np.float32))
    assert (kernel(find_kernels().Pool(1), random_weight(2, 70)) == 0).all()
    kernel = packed(weight_format, random_weight(40, 70))
    assert (kernel(find_kernels().Pool(1), np.zeros((2, 70), np.float32)) == 0).all()


@pytest.mark.parametrize("weight_format", ["int8", "int4"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(weight_format: str, bad: float) -> None:
    """A checkpoint that holds them is broken: better said while loading than by every answer."""
    weight = random_weight(40, 70)
    weight[3, 44] = bad
    with pytest.raises(CheckpointError, match="not finite"):
        pack(find_kernels().Weight(weight_format, 40, 70), find_kernels().Pool(2), torch.from_numpy(weight))


@pytest.mark.parametrize("weight_format", FORMATS)
def test_packing_does_not_depend_on_threads(weight_format: str) -> None:
    """Nor on the order of the parts; 70 inputs end within a vector, a quad and a group."""
    weight = random_weight(200, 70)
    one, three = (find_kernels().Weight(weight_format, *weight.shape) for _ in range(2))
    one.pack(find_kernels().Pool(1), 0, weight)
    for start in (150, 0, 50, 100):
        three.pack(find_kernels().Pool(3), start, weight[start : start + 50])
    assert all((one.unpack(i) == three.unpack(i)).all() for i in range(200))


def test_a_scale_beyond_float16_is_refused() -> None:
    """int4 keeps its scales so; an infinite one would make every answer no number."""
    with pytest.raises(CheckpointError, match="too large"):
        pack(find_kernels().Weight("int4", 40, 70), find_kernels().Pool(1), torch.full((40, 70), 6e5))


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("tiny", [1e-38, 1e-40, 1e-45])
def test_rows_too_small_for_a_scale_are_as_good_as_zeros(weight_format: str, tiny: float) -> None:
    """127 divided by them is infinite."""
    values, pool = np.full((2, 70), tiny, np.float32), find_kernels().Pool(1)
    assert np.abs(packed(weight_format, random_weight(40, 70))(pool, values)).max() < 1e-35
    assert np.abs(packed(weight_format, values)(pool, random_weight(3, 70))).max() < 1e-35


def test_what_does_not_fit_is_refused() -> None:
    """A defect of the caller ends in an exception, not in foreign memory."""
    kernels = find_kernels()
    weight = kernels.Weight("int8", 32, 64)
    with pytest.raises(ValueError, match="unknown weight format"):
        kernels.Weight("int3", 32, 64)
    with pytest.raises(ValueError, match="could leave int32"):
        kernels.Weight("int8", 32, 70_000)
    for start, rows in ((0, (33, 64)), (1, (32, 64)), (-1, (2, 64)), (0, (4, 63))):
        with pytest.raises(ValueError, match="rows do not fit"):
            weight.pack(kernels.Pool(1), start, np.zeros(rows, np.float32))
    with pytest.raises(ValueError, match="wrong shape"):
        weight(kernels.Pool(1), np.zeros((2, 65), np.float32))
    with pytest.raises(ValueError, match="wrong shape"):
        weight.set_bias(np.zeros(31, np.float32))
    with pytest.raises(ValueError, match="no such row"):
        weight.unpack(32)


def test_gates_and_values_alternate_in_sixteens() -> None:
    """The kernel multiplies them while both are in registers; what is missing to 16 is zero."""
    tensor = torch.arange(1, 41).float()[:, None]  # 20 gates, 20 values
    mixed = interleave_gates(tensor)[:, 0].tolist()
    assert mixed[:16] == list(range(1, 17))
    assert mixed[16:32] == list(range(21, 37))
    assert mixed[32:48] == [17, 18, 19, 20, *[0] * 12]
    assert mixed[48:] == [37, 38, 39, 40, *[0] * 12]
