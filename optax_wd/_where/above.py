# SPDX-License-Identifier: Apache-2.0
"""What the modules above a leaf called `weight` say: table, norm, token or layer.

The nearest token that says anything decides, and no other: `layers`, `blocks`, `model`
and numbers say nothing. Only tables, norms and learned tokens exempt a leaf here. A
module called `scale`, `shift`, `mean`, `prefix` or `cls` is as often a linear layer.
"""

from collections.abc import Iterator

from optax_wd._tree.typing import Shape
from optax_wd._where.lexicon import EMBEDS, Kind
from optax_wd._where.verdicts import Verdict
from optax_wd._where.words import Reading

# What a parameter of its own, beside a `weight`, is called: `weight_g`, `weight_scale`.
_OTHERS = (
    Kind.BIAS
    | Kind.SCALE
    | Kind.FACTOR
    | Kind.CONSTANT
    | Kind.STATISTIC
    | Kind.TABLE
    | Kind.CODEBOOK
)
_PLACES = frozenset("in out input output q k v o attn attention att mlp ffn ff".split())
_ROWS = Kind.ROW | Kind.TOKEN | Kind.POSITION
_LEARNED = ("query", "queries", "prompt", "prompts", "latent", "latents", "prefix")
_TOKENS = ("token", "tokens", "queries")
_PLURAL = ("embeddings", "embeds", "tables", "embs")
_MAY_BE = "{!r} may be a table or a layer"
_NOT_MATRICES = ("weight", "spectral")  # norms that normalise weights


def table_role(name: Reading) -> str:
    """The role of a table, from the words of its name."""
    if name.every & Kind.POSITION:
        return "position_table"
    return "learned_token" if name.has(*_LEARNED) else "token_table"


def weight(path: tuple[Reading, ...], shape: Shape) -> Verdict | None:
    """The verdict on a leaf called `weight`; None if it is called otherwise."""
    own = path[-1]
    if Kind.WEIGHT not in own.every:
        return None
    n = max(n for n, kind in enumerate(own.kinds) if kind & Kind.WEIGHT)
    behind = own.kinds[n + 1 :]
    if any(kind & _OTHERS and not kind & Kind.LAYER for kind in behind):
        return None
    long = sum(n != 1 for n in shape)
    if len(shape) > 2 and long == 1 and shape[-1] != 1:  # (1, 1, 1, C): a gain
        return Verdict("vector", "{!r} of one axis", -1)
    modules = _modules(path, own, n)
    nearest, at, numbered = next(modules, (None, 0, False))
    if nearest is None:
        if path[-2:-1] and path[-2].words == ("shared",) and _is_outermost(path):
            return Verdict("token_table", "{!r} is T5's table", -2, unsure=True)
        return _unknown(shape, 0)
    if len(shape) < 2:
        is_norm = bool(nearest.every & Kind.NORM)
        role, says = ("scale", "of a norm, {!r}") if is_norm else ("vector", "in {!r}")
        return Verdict(role, says, at)
    outer = next(modules, (None, 0, False))[0]
    found = (
        _norm(nearest, long, at)
        or _convolution(nearest, shape, at)
        or _position_bias(nearest, shape, at)
        or _codebook(nearest, outer, shape, at)
        or _table(nearest, outer, shape, at, numbered)
        or _token(nearest, shape, at)
        or _bias(nearest, long, at)
        or _layer(nearest, outer, at)
        or _unknown(shape, at, numbered and not _may_embed(nearest, outer))
    )
    return found._replace(unsure=True) if own.has("mask", "scores") else found


def _modules(
    path: tuple[Reading, ...], own: Reading, n: int
) -> Iterator[tuple[Reading, int, bool]]:
    """The tokens above that say anything, the nearest first.

    Of each: its words, its position from the end, and whether a number stands below it.
    The words of the leaf itself in front of its `weight` are the nearest module.
    """
    words = own.words[:n] or tuple(w for w in own.words[n + 1 :] if len(w) > 1)
    inside = Reading(words)
    if inside.every and not inside.is_silent:
        yield inside, -1, False
    numbered = False
    for at in range(2, len(path) + 1):
        token = path[-at]
        if token.is_number:
            numbered = True
        elif not token.is_silent and not token.is_wrapper:
            if token.every != Kind.WEIGHT:  # `parametrizations/weight/original1`
                yield token, -at, numbered
            numbered = False


def _is_outermost(path: tuple[Reading, ...]) -> bool:
    return all(token.is_silent for token in path[:-2])


def _unknown(shape: Shape, at: int, numbered: bool = False) -> Verdict:
    if len(shape) < 2:
        return Verdict("vector", "of one axis")
    if len(shape) > 3:
        return Verdict("weight", f"a weight of {len(shape)} axes")
    if numbered:  # of a sequence of layers, which tables are not part of
        return Verdict("weight", "a weight, below {!r}", at)
    says = "a weight, by shape alone: {!r} tells no use" if at else "a weight by shape"
    return Verdict("weight", says, at, unsure=True)


def _may_embed(*modules: Reading | None) -> bool:
    """Whether some word has to do with tables, known or not: `embedders`."""
    found = [module for module in modules if module is not None]
    return any(
        module.every & Kind.TABLE
        or any(word.startswith(EMBEDS) for word in module.words)
        for module in found
    )


def _norm(module: Reading, long: int, at: int) -> Verdict | None:
    if Kind.NORM not in module.every or module.has(*_NOT_MATRICES):
        return None
    pairs = zip(module.words, module.kinds, strict=True)
    others = [w for w, kind in pairs if not kind & (Kind.NORM | Kind.NEUTRAL)]
    is_norm = module.head_kind & Kind.NORM or all(
        w in _PLACES or len(w) == 1 for w in others
    )
    if is_norm and long < 3:
        return Verdict("scale", "of a norm, {!r}", at, unsure=long == 2)
    return Verdict("weight", "{!r} names a norm and a layer", at, unsure=True)


def _convolution(module: Reading, shape: Shape, at: int) -> Verdict | None:
    if len(shape) < 4:
        return None
    unsure = shape[0] == 1 and not module.every & Kind.LAYER
    return Verdict("weight", "a convolution, in {!r}", at, unsure)


def _is_of_positions(outer: Reading | None) -> bool:
    """Whether what is around a layer makes positions, so that it may be exempt."""
    return (
        outer is not None
        and bool(outer.every & Kind.POSITION and outer.every & Kind.TABLE)
        and not outer.every & Kind.LAYER
    )


def _position_bias(module: Reading, shape: Shape, at: int) -> Verdict | None:
    if not (module.every & Kind.POSITION and module.head_kind & Kind.BIAS):
        return None
    if len(shape) != 2:
        return None
    return Verdict(
        "position_table", "{!r} is a table", at, unsure=not module.is_understood
    )


def _codebook(
    module: Reading, outer: Reading | None, shape: Shape, at: int
) -> Verdict | None:
    if module.every & Kind.LAYER or len(shape) > 3:
        return None
    both = module.every | (outer.every if outer is not None else Kind.NONE)
    beside = module.every & Kind.TABLE and both & (Kind.QUANTIZER | Kind.CODEBOOK)
    if module.head_kind & Kind.CODEBOOK or beside:
        return Verdict("codebook", "{!r} is a codebook", at, unsure=True)
    return None


def _table(
    module: Reading, outer: Reading | None, shape: Shape, at: int, numbered: bool
) -> Verdict | None:
    """Tables of tokens and positions: two axes, and every word understood."""
    is_encoding = module.every & Kind.POSITION and module.has("encoding", "encodings")
    if not (module.every & Kind.TABLE or is_encoding):
        return None
    if any(kind & Kind.LAYER and not kind & Kind.TOKEN for kind in module.kinds):
        return _embedding_layer(module, at)
    is_many = module.has(*_PLURAL)
    if numbered and is_many and not module.every & Kind.DENSE and len(shape) == 2:
        return Verdict(table_role(module), "a row of tables, {!r}", at, unsure=True)
    is_strange = (
        numbered
        or len(shape) != 2
        or not module.is_understood
        or bool(module.every & Kind.DENSE)
        or module.has("layers")
        or (module.has("class", "classes") and module.has("embed"))
    )
    if is_strange:
        is_deep = numbered and bool(module.every & Kind.DENSE)  # `time_embed/0`
        return Verdict("weight", _MAY_BE, at, unsure=not is_deep)
    rows = sum(bool(kind & (_ROWS | Kind.TABLE)) for kind in module.kinds)
    if rows > 1 or module.has("wte", "wpe", "relpos", "posemb"):
        # `rel_emb` may be of relations in a graph, `relative_pos_embeddings` is linear
        # in ProphetNet; `rel_embeddings` are DeBERTa's positions.
        is_relative = module.has("relative") or (
            module.has("rel") and not module.has("embeddings")
        )
        return Verdict(table_role(module), "{!r} is a table", at, unsure=is_relative)
    is_qualified = (
        module.every & Kind.TABLE
        and len(module.words) == 1
        and outer is not None
        and outer.is_understood
        and bool(outer.every & _ROWS)
        and not outer.every & Kind.LAYER
    )
    role = table_role(outer if is_qualified and outer is not None else module)
    is_plural = len(module.words) == 1 and module.has("embeddings", "tables")
    unsure = not (is_qualified or is_plural)
    return Verdict(role, "{!r} is a table", at, unsure)


def _embedding_layer(module: Reading, at: int) -> Verdict:
    """A module that is called a table and a layer: `embed_proj`, `embed_in`."""
    pairs = zip(module.words, module.kinds, strict=True)
    layers = [word for word, kind in pairs if kind & Kind.LAYER]
    is_layer = module.every & Kind.DENSE or (
        module.head_kind & Kind.LAYER and not module.every & _ROWS
    )
    is_layer = is_layer and not set(layers) <= {"in", "out"}
    says = "{!r} is a layer" if is_layer else _MAY_BE
    return Verdict("weight", says, at, unsure=not is_layer)


def _token(module: Reading, shape: Shape, at: int) -> Verdict | None:
    is_token = module.head >= 0 and module.words[module.head] in _TOKENS
    if not is_token or len(shape) != 2:
        return None
    if module.every & Kind.LAYER:
        return Verdict("weight", "{!r} may be a layer", at, unsure=True)
    if not module.is_understood or len(module.words) < 2:
        return None
    return Verdict("learned_token", "{!r} is learned", at)


def _bias(module: Reading, long: int, at: int) -> Verdict | None:
    """A bias for each row of a table, such as `item_bias` of shape (6040, 1)."""
    if not module.head_kind & Kind.BIAS or long > 1 or len(module.words) < 2:
        return None
    if module.every & Kind.LAYER or not module.is_understood:
        return None
    return Verdict("bias", "{!r} is a bias", at, unsure=True)


def _layer(module: Reading, outer: Reading | None, at: int) -> Verdict | None:
    if module.words in (("w",), ("W",)):  # `w1`, `w2` and `w3` of gated networks
        return Verdict("weight", "{!r} is a layer", at)
    if not module.every & Kind.LAYER or module.has("queries", "latents"):
        return None
    is_place = module.head >= 0 and module.words[module.head] in ("in", "out")
    unsure = (
        (module.is_loose and is_place)  # `in_degree_encoder`
        or _is_of_positions(outer)
        or (module.has("query") and module.has("feat", "features"))
    )
    return Verdict("weight", "{!r} is a layer", at, unsure)
