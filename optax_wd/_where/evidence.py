# SPDX-License-Identifier: Apache-2.0
"""What a leaf is in its model, and how it is known: the order of evidence.

The type of the module that holds the leaf goes before names, and names before shapes.
Of names the leaf's own goes first: `kernel` is a matrix whatever stands above it. Only
one called `weight` asks the modules above, see `above`. A leaf of two or more axes that
names do not tell decays, since most are matrices, and is marked as unsure.

Exempting a weight matrix is as bad as decaying a bias. So what exempts has to be the
head of a name, the noun that the other words describe, and every word that is not
understood makes the verdict unsure.
"""

import functools

from optax_wd._tree.typing import Shape
from optax_wd._where import above
from optax_wd._where.lexicon import Kind
from optax_wd._where.verdicts import Verdict
from optax_wd._where.words import Reading

_TABLES_ALONE = frozenset("embedding embeddings table tables wte wpe".split())
# Words that also name layers and directions; compounds of theirs have to be understood.
_WEAK = frozenset(
    "shift shifts offset offsets magnitude latent prefix prefixes seeds queries rel "
    "relative".split()
)
_BIASES = frozenset("bq bk bv bo bqkv".split())
_OTHER_ROLES = (
    Kind.BIAS
    | Kind.SCALE
    | Kind.NORM
    | Kind.TABLE
    | Kind.POSITION
    | Kind.CODEBOOK
    | Kind.STATISTIC
)
_LORA_SCALES = ("e", "E", "s")  # AdaLoRA's `lora_E`, BOFT's `boft_s`
_LORA_REACH = 2  # tokens above a leaf that may say that it is a factor of LoRA
_COLLECTIONS = frozenset("batch stats batchstats statistics".split())
_RUNNING = "running moving ema batch stats batchstats tracked average".split()


@functools.lru_cache(maxsize=1 << 14)
def judge(path: tuple[Reading, ...], shape: Shape) -> Verdict:
    """The verdict on a leaf by its names and shape.

    Args:
      path: what is read of each token, outermost first.
      shape: without stacked axes.

    Returns:
      A verdict; tokens that it names count from the end of `path`.
    """
    if not path:
        return _by_shape(len(shape), sum(n != 1 for n in shape))
    dropped = 0
    while len(path) > 1 and (path[-1].is_wrapper or _is_box(path)):
        path, dropped = path[:-1], dropped + 1
    long = sum(n != 1 for n in shape)
    found = (
        _statistic(path, long)
        or _lora(path, len(shape))
        or _matrix(path[-1:], len(shape), long)
        or _letter(path, long)
        or above.weight(path, shape)
        or _named(path, len(shape), long)
        or _within(path, long)
        or _by_shape(len(shape), long)
    )
    return found._replace(at=found.at - dropped) if found.at else found


def _is_box(path: tuple[Reading, ...]) -> bool:
    """Whether the last token is the box of a parameter: `kernel/value`."""
    within = Kind.WEIGHT | Kind.KERNEL
    return path[-1].words == ("value",) and bool(path[-2].head_kind & within)


def _by_shape(raw: int, long: int) -> Verdict:
    if long < 2:
        says = f"{long} axes longer than one"
        return Verdict("vector", says, unsure=raw == 2 and long > 0)
    return Verdict("weight", f"{long} axes, by shape alone", unsure=True)


def _statistic(path: tuple[Reading, ...], long: int) -> Verdict | None:
    """Collections of statistics, and what a moving average holds."""
    if len(path) < 2:
        return None
    for n, token in enumerate(path[:2]):
        if _COLLECTIONS.issuperset(token.words) and token.words and n < len(path) - 1:
            return Verdict("statistic", "in {!r}", n - len(path))
    holds = path[-1].has("hidden", "average", "counter")
    if holds and path[-2].every & Kind.STATISTIC and not path[-2].every & Kind.LAYER:
        return Verdict("statistic", "in {!r}", -2)
    return None


def _lora(path: tuple[Reading, ...], raw: int) -> Verdict | None:
    """Factors of LoRA; the weights that these are added to lie outside."""
    for n, token in enumerate(reversed(path)):
        if n > _LORA_REACH or token.has("base"):
            return None
        if token.every & Kind.LORA:
            at, found = -1 - n, token
            break
    else:
        return None
    own = path[-1]
    is_scale = (own.every | found.every) & Kind.SCALE and not found.every & Kind.LAYER
    if is_scale or found.has(*_LORA_SCALES):
        return Verdict("scale", "{!r} scales factors of LoRA", at)
    if own.every & Kind.BIAS or own.every & Kind.NORM:
        return None
    if raw < 2:
        return Verdict("scale", "of one axis, in {!r}", at)
    return Verdict("lora", "{!r} is a factor of LoRA", at)


def _matrix(own: tuple[Reading, ...], raw: int, long: int) -> Verdict | None:
    """Kernels: `kernel`, `w`, `w_*`, `*_w`."""
    (name,) = own
    words = name.words
    if name.head_kind & Kind.KERNEL:
        return _kernel(raw)
    letters = [n for n, word in enumerate(words) if word in ("w", "W")]
    if not letters:
        return None
    if long < 2 <= raw - 1:
        return Verdict("vector", "{!r} of one axis", -1)
    if letters[-1] == len(words) - 1 and long > 1:
        if name.head_kind & (Kind.BIAS | Kind.SCALE | Kind.NORM):
            return Verdict("weight", "{!r} makes others", -1, unsure=True)
    if name.head_kind & (Kind.BIAS | Kind.SCALE | Kind.NORM):
        return None
    if letters[-1] == len(words) - 1:
        is_width = len(words) > 1 and name.every & Kind.POSITION
        shared = Kind.FACTOR | Kind.CONSTANT
        if is_width or (long < 2 and name.every & shared):  # `rel_pos_w`, `time_mix_w`
            return None
        return _kernel(raw)
    if letters[0] == 0:
        if name.every & Kind.POSITION:
            return Verdict("position_table", "{!r} is of positions", -1)
        if name.every & Kind.TABLE or words[1:] in (("E",), ("e",)):
            return Verdict("token_table", "{!r} embeds", -1, unsure=long > 1)
        return _kernel(raw)
    return None


def _kernel(raw: int) -> Verdict:
    if raw < 2:
        return Verdict("vector", "{!r} of one axis", -1)
    return Verdict("weight", "named {!r}", -1)


def _letter(path: tuple[Reading, ...], long: int) -> Verdict | None:
    """Names of one letter, `b_Q` and `gating_b`."""
    own = path[-1:]
    above = path[-2].words if len(path) > 1 else ()
    words, unsure = own[0].words, long > 1
    if not words:
        return None
    first, last = words[0], words[-1]
    if own[0].head_kind & (Kind.BIAS | Kind.SCALE) and own[0].words[0] not in _BIASES:
        return None
    if "b" in (first, last) or (len(words) == 1 and first in _BIASES):
        told = first in _BIASES or above == ("bias",)
        return Verdict("bias", "named {!r}", -1, unsure and not told)
    if last == "g" and (len(words) == 1 or own[0].every & Kind.WEIGHT):
        return Verdict("scale", "named {!r}", -1, unsure)
    if "A" in words and all(len(w) == 1 or w in _OF_A for w in words):
        return Verdict("model_constant", "{!r} is a state matrix", -1, len(words) == 1)
    if words == ("D",):
        return Verdict("model_constant", "{!r} is a skip", -1, unsure)
    return None


_OF_A = frozenset("log inv re im real imag".split())


def _named(path: tuple[Reading, ...], raw: int, long: int) -> Verdict | None:
    """By the head noun of the leaf's own name."""
    name = path[-1]
    kind, vague = name.head_kind, name.is_loose and long > 1
    unknown = not name.is_understood and long > 1
    word = name.words[name.head] if name.head >= 0 else ""
    if not kind or word in ("value", "values") and len(name.words) == 1 and long < 2:
        return None
    if kind & Kind.LAYER and not (kind & Kind.TOKEN and name.every & Kind.TABLE):
        return _layer(name, raw, long)
    tables = Kind.TABLE | Kind.TOKEN | Kind.POSITION
    if name.every & Kind.TABLE and (
        kind & tables or word == "var"
    ):  # praxis: `emb_var`
        return _table(path, long)
    weak = word in _WEAK and (unknown or (len(name.words) == 1 and kind & Kind.TOKEN))
    for wanted, role, says, unsure in (
        (Kind.BIAS, "bias", "named {!r}", vague or weak),
        (Kind.SCALE, "scale", "named {!r}", vague or weak or _is_one_of(name)),
        (Kind.NORM, "scale", "{!r} is of a norm", long > 1),
        (Kind.CODEBOOK, "codebook", "{!r} is a codebook", long > 1),
        (Kind.POSITION, "position_table", "{!r} is of positions", unknown or weak),
        (Kind.TOKEN, "learned_token", "{!r} is learned", vague or weak),
        (Kind.CONSTANT, "model_constant", "{!r} is a constant", long > 1),
        (Kind.FACTOR, "factor", "{!r} is a factor", long > 1),
        (Kind.STATISTIC, "statistic", "{!r} is a statistic", _is_guess(name, long)),
    ):
        if kind & wanted:
            return Verdict(role, says, -1, bool(unsure and long > 1))
    return None


def _is_one_of(name: Reading) -> bool:
    """Whether scales have a word behind them, or may be such of each connection."""
    return name.head < len(name.words) - 1 or name.has("scaler", "scalers")


def _is_guess(name: Reading, long: int) -> bool:
    return long > 1 and not name.has(*_RUNNING)


def _layer(name: Reading, raw: int, long: int) -> Verdict:
    """A leaf that is called as layers are: `gate_up_proj`, `text_projection`."""
    if long < 2:
        return Verdict("vector", "{!r} of one axis", -1, unsure=raw == 2)
    if _MEMORIES.intersection(name.words) and _KEYS.issuperset(name.words):
        return Verdict("learned_token", "{!r} are keys and values", -1, unsure=True)
    if name.has("query") and name.has("latent", "learned", "learnable"):
        return Verdict("learned_token", "{!r} is learned", -1, unsure=True)
    unsure = name.is_loose or bool(name.every & _OTHER_ROLES) or raw > 4
    if not _MATRICES.intersection(name.words) or name.has("block", "blocks"):
        unsure = True
    return Verdict("weight", "{!r} is a layer", -1, unsure)


# What `mem_kv` and `null_k` are made of: keys and values that are learned.
_MEMORIES = frozenset("mem memory null".split())
_KEYS = _MEMORIES | frozenset("k v kv key value".split())
# Layers that are one matrix each, so that an array may have their name.
_MATRICES = frozenset(
    "proj projs projection projections projector projected "
    "wq wk wv wo wi wh wz wqkv wkv qkv kv qk linear dense conv fc einsum mlp expert "
    "experts router gate head heads "
    "classifier unembed receptance ih hh transform lin".split()
)


def _table(path: tuple[Reading, ...], long: int) -> Verdict:
    """A leaf that is called a table."""
    name, is_long = path[-1], long > 1
    role = above.table_role(name)
    outer = [token for token in path[-4:-1] if not token.is_silent]
    if any(t.every & (Kind.QUANTIZER | Kind.CODEBOOK) for t in (name, *outer[-2:])):
        return Verdict("codebook", "{!r} of a quantiser", -1, is_long)
    if name.every & (Kind.BIAS | Kind.SCALE) and role == "token_table":
        return Verdict("scale", "{!r} is a table of scales", -1, name.is_loose)
    if is_long and (name.words == ("embed",) or name.has("patch", "patches", "pixel")):
        return Verdict("weight", "{!r} may be a layer", -1, unsure=True)
    alone = len(name.words) == 1 and name.words[0] not in _TABLES_ALONE
    dense = bool(name.every & Kind.DENSE)
    is_width = name.words[-1] == "w"  # of positions, or a weight
    unsure = is_long and (alone or dense or is_width or not name.is_understood)
    return Verdict(role, "named {!r}", -1, unsure)


def _within(path: tuple[Reading, ...], long: int) -> Verdict | None:
    """A leaf whose own name says nothing, inside a module that is a table."""
    outer = [token for token in path[:-1] if not token.is_number][-1:]
    if long < 2 or not outer or not outer[0].is_understood:
        return None
    module = outer[0]
    if module.every & Kind.TABLE and not module.every & (Kind.LAYER | Kind.DENSE):
        at = path.index(module) - len(path)
        return Verdict(above.table_role(module), "in {!r}", at, unsure=True)
    return None
