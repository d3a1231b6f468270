"""Roles: which classes each chooses, how it is written, and a new one from outside."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny_network import CLASSES, run_config

from pipeline.errors import SettingsError
from pipeline.evaluate import evaluate
from pipeline.generate import generate
from pipeline.roles import ROLES, Candidates, RoleEntry, parse_role, parse_roles
from pipeline.store.records import LabelRecord

LOGITS = torch.tensor([0.5, 3.0, -1.0, 3.0, 2.0])
LABELS = (
    LabelRecord("dog", (0, 4), 4),
    LabelRecord("cat", (1,), 1),
    LabelRecord("yeti", (), None),
)


def chosen(role: str, labels: tuple[LabelRecord, ...] = LABELS) -> list[tuple[int, str]]:
    return list(parse_role(role).choose(Candidates("photo", LOGITS, labels)))


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("label", [(4, "dog"), (1, "cat")]),
        ("top", [(1, "")]),
        ("least", [(2, "")]),
        ("top3", [(1, ""), (3, ""), (4, "")]),
        ("class:2", [(2, "")]),
    ],
)
def test_a_role_chooses_by_the_logits(role: str, expected: list[tuple[int, str]]) -> None:
    assert chosen(role) == expected


def test_random_is_a_class_that_no_label_stands_for() -> None:
    assert chosen("random")[0][0] in {2, 3}
    every = tuple(LabelRecord(str(i), (i,), i) for i in range(5))
    assert chosen("random", every)[0][0] in range(5)


@pytest.mark.parametrize("role", ["label", "top", "least", "random", "top2", "class:1"])
def test_the_planned_number_of_classes_is_that_of_the_chosen(role: str) -> None:
    model_classes = [label.model_classes for label in LABELS]
    assert parse_role(role).count(model_classes) == len(chosen(role))


@pytest.mark.parametrize(
    ("role", "message"),
    [
        ("tops", "unknown role 'tops'; did you mean top\\?"),
        ("top0", "unknown role 'top0'"),
        ("class:x", "unknown role 'class:x'; did you mean class:ID\\?"),
    ],
)
def test_a_wrong_role_is_answered_with_the_nearest(role: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_roles(["top", role])


def test_a_new_role_is_one_entry(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second most likely class, and the class of its number in reverse: `second`, `last:N`."""
    monkeypatch.setitem(
        ROLES,
        "second",
        RoleEntry(
            "second",
            "the second most likely class",
            lambda candidates, number: [(int(candidates.logits.argsort(descending=True)[1]), "")],
        ),
    )
    monkeypatch.setitem(
        ROLES,
        "last:N",
        RoleEntry(
            r"last:(\d+)",
            "the last classes",
            lambda candidates, number: [
                (len(candidates.logits) - 1 - i, "") for i in range(number)
            ],
            count=lambda labels, number: number,
        ),
    )
    out = str(tmp_path / "out")
    roles = ["label", "top2", "second", "last:2"]
    summary = generate(run_config(photos, roles=roles, methods=["normgrad"]), out)
    assert summary.maps == summary.plan.planned_maps == 7 * 3 * (1 + 2 + 1 + 2)
    maps = pd.read_parquet(f"{out}/maps")
    for _, of_image in maps.groupby("image_id"):
        by_role = of_image.groupby("role")["target"].agg(set)
        logits = of_image[of_image.role == "top2"].groupby("target")["logit"].first()
        assert by_role["second"] == {logits.idxmin()}
        assert by_role["last:2"] == {CLASSES - 1, CLASSES - 2}
    evaluate(out, metrics=["constant_map"], replicates=5)
    scores = pd.read_parquet(f"{out}/scores")
    assert set(scores["role"]) == set(roles)
