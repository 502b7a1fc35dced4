"""Options in groups, as typer sees them."""

import dataclasses
import inspect
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from efftrain.cli import options
from efftrain.cli.bench import bench
from efftrain.cli.groups import BillOptions, StudyOptions, TrainingOptions, grouped
from efftrain.cli.run import run
from efftrain.cli.train import train
from efftrain.study.planning.request import Request
from efftrain.study.planning.variants import VARIANTS

TRAINING = [group.type for group in dataclasses.fields(TrainingOptions)]
GROUPS = [*TRAINING, BillOptions, StudyOptions]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fruit:
    apples: Annotated[int, typer.Option(help="Red ones.", rich_help_panel="Fruit")] = 1
    pears: Annotated[list[str] | None, typer.Option(rich_help_panel="Fruit")] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Basket:
    fruit: Fruit
    handle: Annotated[str, typer.Option()] = "long"


def test_groups_and_groups_of_groups_arrive_whole():
    seen: list[object] = []

    @grouped
    def command(*, bread: str = "rye", basket: Basket) -> None:
        seen.append((bread, basket))

    app = typer.Typer()
    app.command()(command)
    assert CliRunner().invoke(app, ["--apples", "3", "--pears", "a", "--pears", "b"]).exit_code == 0
    assert CliRunner().invoke(app, ["--handle", "short"]).exit_code == 0
    assert seen == [
        ("rye", Basket(fruit=Fruit(apples=3, pears=["a", "b"]))), ("rye", Basket(fruit=Fruit(), handle="short")),
    ]  # fmt: skip


def test_no_two_groups_have_an_option_in_common():
    names = [field.name for group in GROUPS for field in dataclasses.fields(group)]
    assert len(names) == len(set(names))


def test_every_option_is_a_wish_or_a_setting():
    wishes = {field.name for field in dataclasses.fields(Request)}
    options = {field.name for group in TRAINING for field in dataclasses.fields(group)}
    assert options - wishes == {"bill_data"}
    assert wishes - options == {"preset", "variants", "seeds", "first_seed", "ranks"}


@pytest.mark.parametrize("command", [train, bench, run])
def test_every_option_says_what_it_is(command: object):
    for parameter in inspect.signature(command).parameters.values():  # pyright: ignore[reportArgumentType]
        metadata = getattr(parameter.annotation, "__metadata__", ())
        assert parameter.annotation is typer.Context or (metadata and metadata[0].help), parameter.name


def test_help_names_every_variant():
    assert {*options.NAMES.split(", ")} == {*VARIANTS}
