"""Registers the `corral` commands, in the order of the help."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from services.cli import keys, nodes
from services.cli.chaos import chaos
from services.cli.console import out
from services.cli.deployments import deploy, list_deployments, undeploy
from services.cli.models import list_models, remove, rollback, show, versions
from services.cli.nodes import list_nodes
from services.cli.pull import pull
from services.cli.replicas import ps, stop
from services.cli.run import run
from services.cli.status import status
from services.cli.up import up

app = typer.Typer(
    name="corral",
    help="A team's shared inference cluster for llama.cpp models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        out.print(f"corral {metadata.version('corral')}")
        raise typer.Exit


@app.callback()
def corral(
    version: Annotated[
        bool, typer.Option("--version", "-v", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A team's shared inference cluster for llama.cpp models."""


for command, name in (
    (up, "up"),
    (pull, "pull"),
    (run, "run"),
    (list_models, "list"),
    (ps, "ps"),
    (show, "show"),
    (stop, "stop"),
    (versions, "versions"),
    (rollback, "rollback"),
    (remove, "rm"),
    (status, "status"),
    (list_nodes, "nodes"),
    (deploy, "deploy"),
    (undeploy, "undeploy"),
    (list_deployments, "deployments"),
    (chaos, "chaos"),
):
    app.command(name)(command)
app.command("ls", hidden=True)(list_models)
app.add_typer(keys.app, name="key")
app.add_typer(nodes.app, name="node")
