# SPDX-License-Identifier: Apache-2.0
"""The folds that names tell: of kernels of Flax, and of weights in torch's order.

Names tell what an axis is for, shapes do not. Where two names of one path tell two
uses, and where a convolution may be one for each channel, there is no fold, and what is
said instead is why, and what there is to choose from.
"""

import fnmatch
import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from optax_wd._tree.typing import Path, Shape
from optax_wd._where.matrices import is_patch_embedding


class Known(NamedTuple):
    """What is known of the use of a leaf.

    Attributes:
      letters: its fold without stacked axes, or None.
      because: where the fold comes from; without one, what stands against it, if any.
      choices: without a fold, those to choose from, if they are not of all kinds.
    """

    letters: str | None
    because: str = ""
    choices: str = ""


def _globs(patterns: str) -> Callable[[str], bool]:
    """Whether a token is one of some globs; compiled when it is first asked."""

    @functools.cache
    def compiled() -> re.Pattern[str]:
        return re.compile("|".join(map(fnmatch.translate, patterns.split())))

    return lambda token: compiled().match(token) is not None


# Modules of Flax attention. Others of like names have no heads: `q_proj`, say, whose
# kernel has three dimensions only where layers are stacked.
_HEADS_MADE = frozenset("query key value".split())
_HEADS_MERGED = frozenset(["out"])
_HEADS_FUSED = frozenset(["qkv"])

# Experts: some token of the path, and the name of the leaf. A block or a layer with a
# mixture of experts may hold attention and convolutions beside it, as in MaxText.
_EXPERTS = _globs("experts experts_* *_experts expert expert_*")
_MIXTURES = _globs("moe *_moe")
_MIXED_BLOCKS = _globs("moe_* moeblock*")
_EXPERT_LEAVES = _globs("kernel weight w wi* wo* w1 w2 w3 experts_*")
# One expert out of a list: its arrays have no axis of experts. Linen says `experts_0`.
_ONE_EXPERT = r"(^|/)(experts?_\d+|(\w+_)?experts?/\d+)/"

# Attention inside of a mixture of experts, whose kernels are no experts. Projections
# tell it where they hold layers; as a layer of its own `out` may belong to an expert.
_ATTENTION = _globs("*attn* *attention* *mha* *mhsa*")
_PROJECTIONS = _globs("query key value out qkv [qkvo]_proj out_proj")

_CONVOLUTIONS = _globs("conv* *conv deconv*")
_LOCAL = _globs("convlocal*")  # of Linen: a matrix for each position of the output
_TRANSPOSED = _globs("*deconv* *transpose*")
_GROUPED = _globs("dw dwconv* dw_conv* *_dw *depthwise* *group*conv* *conv*group*")


def known(path: Path, inner: Shape) -> Known:
    """What names tell of a leaf, whose shape is given without stacked axes."""
    *_, name = path or ("",)
    if len(inner) == 2:
        return Known("oi", f"2-D {name}") if _is_torch(name) else Known("io", "2-D")
    used = _attention(path, inner) or _convolution(path, inner)
    if len(inner) == 3 and _has_experts(path):
        used = _among_experts(path, used)
    return used or Known(None)


def unstacked(path: Path, inner: Shape) -> str | None:
    """The fold of the other axes that would be known if the first was stacked."""
    return known(path, inner[1:]).letters


def choices(path: Path, inner: Shape) -> str:
    """What folds there are for a leaf of so many axes; which one, its use tells."""
    is_torch = _is_torch(path[-1] if path else "")
    convolution = f"{_dense(is_torch, len(inner))!r} for a convolution"
    if len(inner) > 3:
        within = unstacked(path, inner)
        likely = convolution if within is None else repr("b" + within)
        return f"{likely}, or one letter per axis, i input, o output, b batch"
    if is_torch:
        return f"'boi' for experts, {convolution}"
    return (
        "'bio' for experts, 'ioo' where it makes heads, 'iio' where it merges them or "
        "is a convolution"
    )


def _is_torch(name: str) -> bool:
    """Whether a leaf is called as those of torch and Equinox, which are out by in."""
    return name == "weight" or name.startswith("weight_") or name.endswith("_weight")


def _dense(is_torch: bool, ndim: int) -> str:
    """The fold of a convolution whose every output sums over all input channels."""
    window = "i" * (ndim - 1)
    return f"o{window}" if is_torch else f"{window}o"


def _attention(path: Path, inner: Shape) -> Known | None:
    *_, module, name = ("", "", *path)
    if name != "kernel":
        return None
    if module in _HEADS_MADE and len(inner) == 3:
        return Known("ioo", f"{module!r} makes heads")
    if module in _HEADS_MERGED and len(inner) == 3:
        return Known("iio", f"{module!r} merges heads")
    if module in _HEADS_FUSED and len(inner) == 4 and inner[1] == 3:
        return Known("iboo", f"{module!r} makes heads, three times")
    return None


def _convolution(path: Path, inner: Shape) -> Known | None:
    *_, module, name = ("", "", *(token.casefold() for token in path))
    ndim, is_torch = len(inner), _is_torch(path[-1] if path else "")
    dense, cuts = _dense(is_torch, ndim), _cuts_patches(path, inner)
    if ndim > 5:
        return None
    if _GROUPED(module):
        what = "a depthwise or grouped convolution is no matrix and belongs to AdamW"
        return Known(None, what, f"{dense!r} only where it is dense")
    if not (_CONVOLUTIONS(module) or cuts):
        return None
    if _TRANSPOSED(module) and name != "kernel":
        return _transposed(is_torch, ndim)
    if _LOCAL(module) and not is_torch:
        return Known("b" * (ndim - 2) + "io", "convolution, anew at each position")
    inputs, outputs = (inner[1], inner[0]) if is_torch else inner[-2:]
    if inputs == 1 < outputs and not (cuts or _TRANSPOSED(module)):
        what = (
            "a convolution of one input channel may be depthwise, which is no matrix "
            "and belongs to AdamW, or dense, as over grey images"
        )
        return Known(None, what, f"{dense!r} where it is dense")
    return Known(dense, "convolution")


def _cuts_patches(path: Path, inner: Shape) -> bool:
    """Whether a leaf is of `patch_embed`, `patch_embed/proj`, or such an `embedding`.

    A layer of three axes below a `patch...` may be anything.
    """
    *_, outer, module, _ = ("", "", "", *(token.casefold() for token in path))
    below = len(inner) > 3 and outer.startswith("patch")
    return module.startswith("patch") or below or is_patch_embedding(path, inner)


def _transposed(is_torch: bool, ndim: int) -> Known:
    """Only Flax's `kernel` is known: libraries differ in the order of the rest."""
    window = "i" * (ndim - 2)
    if is_torch:
        what = (
            "transposed, it is (in, out, window) in torch, (out, in, window) in Equinox"
        )
        choice = f"{f'io{window}'!r} for torch's, {f'oi{window}'!r} for Equinox's"
        return Known(None, what, choice)
    what = "transposed, its last axes are (in, out) or (out, in)"
    return Known(None, what, f"{f'{window}io'!r} or {f'{window}oi'!r} accordingly")


def _has_experts(path: Path) -> bool:
    tokens = [token.casefold() for token in path]
    return (
        any(_any(names, tokens) for names in (_EXPERTS, _MIXTURES, _MIXED_BLOCKS))
        and re.search(_ONE_EXPERT, "/".join(tokens)) is None
        and _EXPERT_LEAVES(tokens[-1])
    )


def _among_experts(path: Path, used: Known | None) -> Known | None:
    """A leaf of three axes in whose path there are experts, and what else it may be.

    Experts right above a layer of whatever name are stacked, as one alone has one axis
    less; attention around it has them elsewhere, if it is not itself an expert.
    """
    tokens = [token.casefold() for token in path]
    above = tokens[:-2]
    experts = Known("boi" if _is_torch(path[-1]) else "bio", "experts")
    if _any(_ATTENTION, tokens) or _any(_PROJECTIONS, above):
        found, clash = used, _any(_EXPERTS, above)
    else:
        last = above[-1:]
        found, clash = experts, not (_any(_EXPERTS, last) or _any(_MIXTURES, last))
    if used is None or used.letters is None:
        return used or found
    if not clash:
        return found
    what = f"its name says one ({used.because}), its path another (experts)"
    return Known(None, what, f"{used.letters!r} or {experts.letters!r}")


def _any(names: Callable[[str], bool], tokens: Sequence[str]) -> bool:
    return any(map(names, tokens))
