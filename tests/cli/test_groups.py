"""Options in groups, as typer sees them."""

import dataclasses
import inspect
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from efftrain.cli.bench import bench
from efftrain.cli.groups import (
    BillOptions,
    HorizonOptions,
    ModelOptions,
    ReuseOptions,
    StepOptions,
    StudyOptions,
    TextOptions,
    grouped,
)
from efftrain.cli.run import run
from efftrain.cli.train import train
from efftrain.study.planning.request import Request

GROUPS = (ModelOptions, TextOptions, StepOptions, HorizonOptions, ReuseOptions, BillOptions, StudyOptions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fruit:
    apples: Annotated[int, typer.Option(help="Red ones.", rich_help_panel="Fruit")] = 1
    pears: Annotated[list[str] | None, typer.Option(rich_help_panel="Fruit")] = None


def test_a_group_arrives_whole():
    seen: list[object] = []

    @grouped
    def command(*, bread: str = "rye", fruit: Fruit) -> None:
        seen.append((bread, fruit))

    app = typer.Typer()
    app.command()(command)
    assert CliRunner().invoke(app, ["--apples", "3", "--pears", "a", "--pears", "b"]).exit_code == 0
    assert CliRunner().invoke(app, []).exit_code == 0
    assert seen == [("rye", Fruit(apples=3, pears=["a", "b"])), ("rye", Fruit())]


def test_no_two_groups_have_an_option_in_common():
    names = [field.name for group in GROUPS for field in dataclasses.fields(group)]
    assert len(names) == len(set(names))


def test_every_option_is_a_wish_or_a_setting():
    wishes = {field.name for field in dataclasses.fields(Request)}
    training = (ModelOptions, TextOptions, StepOptions, HorizonOptions, ReuseOptions)
    options = {field.name for group in training for field in dataclasses.fields(group)}
    assert options - wishes == {"bill_data"}
    assert wishes - options == {"preset", "variants", "seeds", "first_seed", "ranks"}


@pytest.mark.parametrize("command", [train, bench, run])
def test_every_option_says_what_it_is(command: object):
    for parameter in inspect.signature(command).parameters.values():  # pyright: ignore[reportArgumentType]
        metadata = getattr(parameter.annotation, "__metadata__", ())
        assert parameter.annotation is typer.Context or (metadata and metadata[0].help), parameter.name
