# SPDX-License-Identifier: Apache-2.0
"""The default mask on a zoo of real models and on single names, leaf by leaf."""

import jax
import pytest
import zoo
from helpers import ROOT
from pages import rows_of

import optax_wd as wd

PAGE = ROOT / "docs" / "zoo.md"


def told(answers: list[zoo.Answer]) -> list[str]:
    return [
        f"{answer.where}: {answer.leaf.where} {answer.leaf.shape} is {answer.role}, "
        f"decays {answer.decays}; {wd.standard.reason(answer.leaf)}"
        for answer in answers
    ]


def test_the_zoo_is_large_and_of_many_kinds() -> None:
    models = zoo.models()
    assert len(models) >= 60
    assert len({model.code_base for model in models}) >= 40
    frameworks = {model.framework for model in models}
    assert {"Equinox", "Haiku", "Linen", "NNX", "torch"} <= frameworks
    assert len(zoo.names()) >= 400
    disguised = [x for x in zoo.names() if x.decays]
    assert len(disguised) >= 200


def test_no_leaf_of_the_zoo_is_wrong_in_silence() -> None:
    answers = [answer for model in zoo.models() for answer in model.answers]
    assert told(zoo.score(wd.standard, answers).silent) == []


def test_no_single_name_is_wrong_in_silence() -> None:
    assert told(zoo.score(wd.standard, zoo.names()).silent) == []


# BERT, GPT-2, LLaMA, ViT and ResNet-50, in Flax and in torch names.
PLAIN = (
    "big_vision__vit_map dinov2__vit_base_patch14_dinov2 easylm__llama equimo__vit "
    "hf_flax__bert hf_flax__gpt2 hf_flax__llama hf_trainer__bert-base hf_trainer__gpt2 "
    "hf_trainer__llama-tiny mae__vit_base_patch16_224 nanogpt__gpt2 timm__resnet50 "
    "timm__vit_base_patch16_224 torchvision__vit_b_16 transformers__bert "
    "transformers__gpt2 transformers__llama bonsai__resnet"
).split()


@pytest.mark.parametrize("name", PLAIN)
def test_of_plain_models_nothing_is_flagged(name: str) -> None:
    (model,) = [model for model in zoo.models() if model.name == name]
    found = zoo.score(wd.standard, model.answers)
    assert told(found.flagged + found.told) == []


def test_warnings_name_one_right_leaf_in_a_hundred_at_most() -> None:
    named, right = 0, 0
    for model in zoo.models():
        leaves = {x.leaf.where: x for x in model.answers}
        tree = {
            where: jax.ShapeDtypeStruct(x.leaf.shape, x.leaf.dtype)
            for where, x in leaves.items()
        }
        said = " ".join(wd.describe(wd.standard, tree).warnings).replace(" and", ",")
        for where, answer in leaves.items():
            if answer.decays == wd.standard.matches(answer.leaf):
                right += 1
                named += f" {where}," in said or f" {where};" in said
    assert 0 < named <= 0.01 * right  # some are: or the search for them is broken


def test_the_page_has_the_table_that_is_measured() -> None:
    lines = [f"| {' | '.join(row)} |" for row in zoo.table()]
    shown = rows_of(lines[0], PAGE.read_text("utf-8"))
    assert [shown[0], *shown[2:]] == lines


def test_a_score_tells_silence_from_doubt() -> None:
    class Unsure(wd.Rule):
        def matches(self, leaf: wd.Leaf) -> bool:
            return True

        def reason(self, leaf: wd.Leaf) -> str:
            return "all"

        def unsure(self, leaf: wd.Leaf) -> bool:
            return leaf.name == "unsure"

    def answer(name: str, decays: bool | None) -> zoo.Answer:
        return zoo.Answer(wd.Leaf((name,), (2, 3), "float32"), "weight", decays, name)

    silent = [answer("wrong", False), answer("open", None)]
    told_of = [answer("unsure", False)]
    flagged = [answer("unsure", True)]
    rest = [answer("right", True), answer("unsure", None)]
    found = zoo.score(Unsure(), [*silent, *told_of, *flagged, *rest])
    assert (found.silent, found.told, found.flagged) == (silent, told_of, flagged)
    assert found.leaves == 6 and found.wrong == 2 and len(found.models) == 2
