# SPDX-License-Identifier: Apache-2.0
"""The cautious gate on special values, against exact arithmetic on their bits.

The reference reads a bit pattern by the definition of IEEE 754 and multiplies exact
fractions. It shares nothing with the gate, which is run eagerly and compiled.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import once

import optax_wd as wd


@dataclasses.dataclass(frozen=True)
class Format:
    """A binary floating-point format: sign bit, exponent, fraction."""

    name: str
    exponent: int
    fraction: int
    top_is_special: bool = True  # the largest exponent has infinities and NaN

    @property
    def width(self) -> int:
        return 1 + self.exponent + self.fraction

    @property
    def dtype(self) -> np.dtype:
        return jnp.dtype(self.name)

    def array(self, patterns: list[int]) -> np.ndarray:
        return np.asarray(patterns, f"uint{self.width}").view(self.dtype)

    def bits(self, value: float) -> int:
        return int(np.asarray(value, self.dtype).view(f"uint{self.width}"))

    def exact(self, pattern: int) -> Fraction | float:
        """The value of a bit pattern: a fraction, an infinity, or NaN."""
        sign = -1 if pattern >> (self.width - 1) else 1
        biased = (pattern >> self.fraction) & (2**self.exponent - 1)
        fraction = pattern & (2**self.fraction - 1)
        if self.top_is_special and biased == 2**self.exponent - 1:
            return math.nan if fraction else sign * math.inf
        # e4m3fn has no infinities, and one NaN of each sign
        if not self.top_is_special and pattern & 0x7F == 0x7F:
            return math.nan
        leading = Fraction(fraction, 2**self.fraction) + (1 if biased else 0)
        bias = 2 ** (self.exponent - 1) - 1
        return sign * leading * Fraction(2) ** (max(biased, 1) - bias)


HALF = Format("float16", 5, 10)
BFLOAT = Format("bfloat16", 8, 7)
SINGLE = Format("float32", 8, 23)
DOUBLE = Format("float64", 11, 52)
EIGHT = (Format("float8_e5m2", 5, 2), Format("float8_e4m3fn", 4, 3, False))
NATIVE = (HALF, BFLOAT, SINGLE)


def special(form: Format) -> list[int]:
    """Bit patterns that have gone wrong somewhere, each with either sign."""
    normal = 1 << form.fraction
    infinity = (2**form.exponent - 1) << form.fraction
    positive = [
        0,
        1,  # the smallest subnormal
        2,
        normal - 1,  # the largest subnormal
        normal,  # the smallest normal
        form.bits(1e-4) if form.width > 8 else form.bits(0.02),
        form.bits(1.0),
        infinity - 1,  # the largest finite number, where there are infinities
        infinity,
        infinity + 1,  # NaN, signalling
        infinity + normal // 2,  # NaN, quiet
        (1 << (form.width - 1)) - 1,  # NaN, all ones
    ]
    return positive + [pattern | 1 << (form.width - 1) for pattern in positive]


def sign(value: Fraction | float) -> int:
    return (value > 0) - (value < 0)


def expected(s: Fraction | float, d: Fraction | float) -> bool:
    """`s * d >= 0` in exact arithmetic, where 0 times infinity counts as 0."""
    if math.isnan(s) or math.isnan(d):
        return False
    if isinstance(s, Fraction) and isinstance(d, Fraction):
        return s * d >= 0
    return sign(s) * sign(d) >= 0


def table(a: Format, b: Format) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of special values of two formats, and what the gate has to say."""
    pairs = list(itertools.product(special(a), special(b)))
    answers = [expected(a.exact(s), b.exact(d)) for s, d in pairs]
    return (
        a.array([s for s, _ in pairs]),
        b.array([d for _, d in pairs]),
        np.asarray(answers),
    )


def on_device(values: np.ndarray) -> jax.Array:
    """The same bits in a JAX array."""
    array = jnp.asarray(values)
    bits = f"uint{8 * values.dtype.itemsize}"
    np.testing.assert_array_equal(np.asarray(array).view(bits), values.view(bits))
    return array


def assert_gate(a: Format, b: Format, gate: Callable[..., jax.Array]) -> None:
    s, d, answers = table(a, b)
    is_open = gate(on_device(s), on_device(d))
    assert is_open.dtype == jnp.bool_ and is_open.shape == s.shape
    wrong = np.flatnonzero(np.asarray(is_open) != answers)
    assert not wrong.size, [(s[n], d[n], bool(answers[n])) for n in wrong[:8]]


GATES = {"eager": wd.cautious_gate, "compiled": jax.jit(wd.cautious_gate)}
how = pytest.mark.parametrize("gate", GATES.values(), ids=GATES)


@pytest.mark.parametrize("form", [*NATIVE, DOUBLE, *EIGHT], ids=lambda f: f.name)
def test_the_reference_reads_bits_as_numpy_does(form: Format) -> None:
    patterns = special(form)
    for pattern, value in zip(patterns, form.array(patterns), strict=True):
        exact = form.exact(pattern)
        assert float(value) == float(exact) or math.isnan(value) and math.isnan(exact)
        assert math.isnan(exact) or sign(exact) == np.sign(float(value))


@pytest.mark.parametrize("form", NATIVE, ids=lambda f: f.name)
@how
def test_all_pairs_of_special_values_are_right(form: Format, gate: Any) -> None:
    assert_gate(form, form, gate)


@how
def test_all_pairs_of_special_values_are_right_in_float64(gate: Any) -> None:
    with jax.enable_x64(True):
        assert_gate(DOUBLE, DOUBLE, gate)
        assert_gate(DOUBLE, HALF, gate)
        assert_gate(SINGLE, DOUBLE, gate)


@pytest.mark.parametrize(
    "forms",
    list(itertools.permutations(NATIVE, 2)),
    ids=lambda p: f"{p[0].name}-{p[1].name}",
)
@how
def test_the_two_arguments_may_have_different_dtypes(
    forms: tuple[Format, Format], gate: Any
) -> None:
    assert_gate(*forms, gate)


@pytest.mark.parametrize("form", EIGHT, ids=lambda f: f.name)
@how
def test_float8_is_read_right_with_itself_and_with_float32(
    form: Format, gate: Any
) -> None:
    assert_gate(form, form, gate)
    assert_gate(form, SINGLE, gate)
    assert_gate(SINGLE, form, gate)


def test_the_table_catches_a_product_that_underflows() -> None:
    # 1e-4 * -1e-4 is -0.0 in float16, which is not negative.
    s, d, answers = table(HALF, HALF)
    with np.errstate(all="ignore"):
        by_product = np.asarray(s * d >= 0)
    assert np.any(by_product & ~answers)
    tiny = np.float16(1e-4)
    assert tiny * -tiny >= 0 and not wd.cautious_gate(
        jnp.asarray(tiny), jnp.asarray(-tiny)
    )


@pytest.mark.parametrize("form", NATIVE, ids=lambda f: f.name)
def test_every_value_of_one_sign_agrees_with_every_other(form: Format) -> None:
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 1 << form.width, size=(2, 4096)).tolist()
    s, d = (form.array(row) for row in patterns)
    answers = [
        expected(form.exact(a), form.exact(b)) for a, b in zip(*patterns, strict=True)
    ]
    np.testing.assert_array_equal(
        GATES["compiled"](on_device(s), on_device(d)), answers
    )


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_the_answer_has_the_shape_of_the_arguments(shape: tuple[int, ...]) -> None:
    ones = jnp.ones(shape)
    gate = GATES["compiled"]
    assert gate(ones, ones).shape == shape
    assert np.all(gate(ones, ones)) and not np.any(gate(-ones, ones))


@pytest.mark.parametrize("form", NATIVE, ids=lambda f: f.name)
def test_the_gate_is_symmetric(form: Format) -> None:
    s, d = map(on_device, table(form, form)[:2])
    np.testing.assert_array_equal(wd.cautious_gate(s, d), wd.cautious_gate(d, s))


def test_only_signs_matter() -> None:
    rng = np.random.default_rng(0)
    s, d = (jnp.asarray(rng.normal(size=64), jnp.float32) for _ in range(2))
    gate = GATES["compiled"]
    for factor in (1e-30, 1e30):
        np.testing.assert_array_equal(gate(factor * s, d), gate(s, d))
        np.testing.assert_array_equal(gate(s, factor * d), gate(s, d))


def test_the_gate_works_under_strict_promotion_in_every_dtype() -> None:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for a, b in itertools.product((*NATIVE, *EIGHT), repeat=2):
            ones = jnp.ones((2, 3), a.dtype), jnp.ones((2, 3), b.dtype)
            assert jax.eval_shape(wd.cautious_gate, *ones).shape == (2, 3)


@pytest.mark.parametrize("form", NATIVE, ids=lambda f: f.name)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_subnormal_step_away_from_zero_keeps_the_decay_out(
    form: Format, compiled: bool
) -> None:
    """The gate sees the update as it came, through the whole engine."""
    one, minus = form.bits(1.0), 1 << (form.width - 1)
    s = form.array([1, 1 | minus, 1, 1 | minus, 0, minus])
    x = form.array([one, one, one | minus, one | minus, one, one])
    tx = wd.cautious_weight_decay(0.5, wd.everything)

    def update(u: jax.Array, p: jax.Array) -> Any:
        return once(tx, {"w": u}, {"w": p})["w"]

    moved = (jax.jit(update) if compiled else update)(on_device(s), on_device(x))
    assert moved.dtype == form.dtype
    decayed = np.abs(np.asarray(moved, np.float64)) > 0.25
    np.testing.assert_array_equal(decayed, [True, False, False, True, True, True])
