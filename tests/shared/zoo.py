# SPDX-License-Identifier: Apache-2.0
"""A zoo of real models: names, shapes and dtypes of leaves, and what each of them is.

Answers were reasoned leaf by leaf, without a look at what rules of this package say;
then the rules were made to agree. Each file of `tests/data/zoo` says where its model
comes from; `names.txt` has single names, weight matrices in disguise above all.
"""

import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable

from helpers import DATA

import optax_wd as wd

FOLDER = DATA / "zoo"


@dataclasses.dataclass(frozen=True)
class Answer:
    """A leaf, its role, and whether it decays; None where nobody could tell."""

    leaf: wd.Leaf
    role: str
    decays: bool | None
    where: str

    @property
    def axes(self) -> int:
        """How many axes are longer than one. What has one stays undecayed, unmarked."""
        return sum(n != 1 for n in self.leaf.shape)


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of a code base, with the right answers."""

    name: str
    code_base: str
    framework: str
    answers: tuple[Answer, ...]


@functools.cache
def models() -> tuple[Model, ...]:
    """All models, in the order of their files."""
    return tuple(_read(path.stem) for path in sorted(FOLDER.glob("*.json")))


def _read(stem: str) -> Model:
    found = json.loads((FOLDER / f"{stem}.json").read_text("utf-8"))
    answers = tuple(
        Answer(wd.Leaf(tuple(path.split("/")), shape, dtype), role, decays, stem)
        for path, shape, dtype, role, decays in found["leaves"]
    )
    return Model(stem, found["code_base"], found["framework"], answers)


@functools.cache
def names() -> tuple[Answer, ...]:
    """Single names, each a leaf of its own."""
    lines = (FOLDER / "names.txt").read_text("utf-8").splitlines()
    return tuple(_name(line) for line in lines if line and not line.startswith("#"))


def _name(line: str) -> Answer:
    path, shape, decays, role, where = line.split("|", 4)
    separator = "/" if "/" in path else "."
    sizes = tuple(int(size) for size in shape.split(",") if size)
    leaf = wd.Leaf(tuple(path.split(separator)), sizes, "float32")
    return Answer(leaf, role, {"D": True, "-": False, "?": None}[decays], where)


# Tables that their authors call linear layers: no name tells, nor does any shape.
NOT_TOLD = {
    ("fm", "linear", "fc", "weight"),
    ("causal_transformer_shard", "~", "embedding_shard", "~", "linear", "w"),
}


@dataclasses.dataclass
class Score:
    """How a rule did: leaves that are wrong in silence, wrong and flagged, flagged."""

    leaves: int = 0
    silent: list[Answer] = dataclasses.field(default_factory=list)
    told: list[Answer] = dataclasses.field(default_factory=list)
    flagged: list[Answer] = dataclasses.field(default_factory=list)  # and right
    models: set[str] = dataclasses.field(default_factory=set)  # with a wrong leaf

    @property
    def wrong(self) -> int:
        """How many leaves are wrong, told or not."""
        return len(self.told) + sum(one.decays is not None for one in self.silent)


def score(rule: wd.Rule, answers: Iterable[Answer]) -> Score:
    """What a rule says, held against the answers.

    Where nobody can tell, a rule has to say that it is unsure.
    """
    found = Score()
    for answer in answers:
        found.leaves += 1
        right = answer.decays in (None, rule.matches(answer.leaf))
        unsure = rule.unsure(answer.leaf)
        is_open = (
            answer.decays is None
            and answer.axes > 1
            and answer.leaf.path not in NOT_TOLD
        )
        if not unsure and (is_open or not right):
            found.silent.append(answer)
        elif unsure and right and answer.decays is not None:
            found.flagged.append(answer)
        elif not right:
            found.told.append(answer)
        if not right:
            found.models.add(answer.where)
    return found


def of_muon(leaf: wd.Leaf) -> bool:
    """What `optax.contrib.muon` decays: leaves of two dimensions."""
    return leaf.ndim == 2


PEERS: dict[str, Callable[[], wd.Rule]] = {
    "`standard`": lambda: wd.standard,
    "`ndim > 1`": lambda: wd.min_ndim(2),
    "timm": lambda: wd.recipes.timm(),
    "Hugging Face": lambda: wd.recipes.hf_trainer(wd.nothing),  # names alone
    "levanter": lambda: wd.recipes.levanter(),
    "`optax.contrib.muon`": lambda: wd.satisfies(of_muon, "two dimensions"),
}
"""Rules of the field, by the names of the columns that they have on the page."""

HEAD = ("framework", "models", "leaves", "kinds of leaf", "flagged", *PEERS)


def table() -> list[tuple[str, ...]]:
    """The score by framework: of each rule how many leaves are wrong, and where.

    Kinds of leaf are distinct pairs of the last token and the role. A model of which
    some leaf is wrong counts as wrong: `12 in 3` is twelve leaves in three models.
    """
    by_framework: dict[str, list[Model]] = collections.defaultdict(list)
    for model in models():
        by_framework[model.framework].append(model)
    rows = [(name, found) for name, found in sorted(by_framework.items())]
    return [HEAD, *(_row(*row) for row in [*rows, ("all", list(models()))])]


def _row(framework: str, found: list[Model]) -> tuple[str, ...]:
    answers = [answer for model in found for answer in model.answers]
    kinds = {(answer.leaf.name, answer.role) for answer in answers}
    scores = {name: score(rule(), answers) for name, rule in PEERS.items()}
    marked = sum(wd.standard.unsure(answer.leaf) for answer in answers)
    wrong = (f"{one.wrong:,} in {len(one.models):,}" for one in scores.values())
    counts = len(found), len(answers), len(kinds), marked
    return (framework, *(f"{count:,}" for count in counts), *wrong)
