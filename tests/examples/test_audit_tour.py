# SPDX-License-Identifier: Apache-2.0
"""The tour of audits: its table says what the README says."""

import importlib
from typing import Any

import pytest

tour: Any = importlib.import_module("audit_tour")


def test_it_audits_more_than_twenty_optimizers() -> None:
    assert len(tour.OPTIMIZERS) > 20


def test_the_table_shows_what_the_three_findings_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        "inject_hyperparams(adamw), the same mask",
        "chain(adam, add_decayed_weights)",
        "contrib.muon",
        "optax_wd.adamw, cautious",
    ]
    chosen = {name: tour.OPTIMIZERS[name] for name in names}
    monkeypatch.setattr(tour, "OPTIMIZERS", chosen)
    tour.main()
    head, *lines = capsys.readouterr().out.strip().split("\n")
    assert head.split() == ["optimizer", "kernel", "bias", "scale"]
    cells = [line[len(name) :].split() for name, line in zip(names, lines, strict=True)]
    assert cells == [
        ["-", "-", "-"],
        ["growing", "-0.1"] * 3,
        ["-", "decoupled", "0.001,", "-", "-"],
        ["cautious", "0.001", "-", "-"],
    ]
