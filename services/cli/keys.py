"""`corral key`: API keys."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Annotated
from urllib.parse import quote

import typer

from services.cli.console import err, out, print_json, print_table
from services.cli.errors import CommandError
from services.cli.models import Json
from services.cli.quantities import time_text
from services.cli.server import connect

app = typer.Typer(help="Create, list, change and revoke API keys.", no_args_is_help=True)


class Priority(enum.StrEnum):
    """The values of the gateway's X-Priority header."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BATCH = "batch"


NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The key's name, or its id.")]


@app.command()
def create(
    name: NameArgument,
    team: Annotated[str, typer.Option(help="Team that the key belongs to.")] = "",
    admin: Annotated[
        bool, typer.Option("--admin", help="Also allow it to pull and delete models, and to manage nodes and keys.")
    ] = False,
    weight: Annotated[float, typer.Option(help="Share of a busy model compared with other keys, from 0.01 to 100.")] = 1.0,
    priority: Annotated[Priority, typer.Option(help="Highest priority that its requests may have.")] = Priority.INTERACTIVE,
    max_waiting: Annotated[
        int | None, typer.Option(min=1, help="How many of its requests may wait for one model; default: the gateway's limit.")
    ] = None,
    json: Json = False,
) -> None:
    """Create a key. Only the secret goes to stdout; it can't be shown again."""
    terms = {"weight": weight, "priority": priority.value, "max_waiting": max_waiting}
    key = connect().post("/registry/v1/keys", terms | {"name": name, "team": team, "admin": admin})
    if json:
        print_json(key)
        return
    kind = "an admin key" if key["admin"] else "a key"
    err.print(f"Created {kind} named '{key['name']}'. Its secret is shown only now:")
    out.print(key["secret"])


@app.command("set")
def change(
    name: NameArgument,
    team: Annotated[str | None, typer.Option(help="Team that the key belongs to.")] = None,
    admin: Annotated[
        bool | None,
        typer.Option("--admin/--no-admin", help="Also allow it to pull and delete models, and to manage nodes and keys."),
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="Share of a busy model compared with other keys, from 0.01 to 100.")
    ] = None,
    priority: Annotated[Priority | None, typer.Option(help="Highest priority that its requests may have.")] = None,
    max_waiting: Annotated[
        int | None, typer.Option(min=0, help="How many of its requests may wait for one model; 0: the gateway's limit.")
    ] = None,
) -> None:
    """Change a key. Its secret and anything omitted stay the same."""
    given = {"team": team, "admin": admin, "weight": weight, "priority": priority and priority.value}
    changes: dict[str, object] = {field: value for field, value in given.items() if value is not None}
    if max_waiting is not None:
        changes["max_waiting"] = max_waiting or None
    if not changes:
        raise CommandError("nothing to change; see corral key set --help")
    key = connect().patch(_route(name), changes)
    out.print(f"changed '{key['name']}': weight {key['weight']:g}, {key['priority']}{', admin' if key['admin'] else ''}")


@app.command("list")
def list_keys(json: Json = False) -> None:
    """List keys, without their secrets."""
    found = connect().get("/registry/v1/keys")
    if json:
        print_json(found)
        return
    rows = [
        (
            key["name"],
            f"{key['prefix']}...",
            key["team"] or "-",
            "admin" if key["admin"] else "use",
            f"{key['weight']:g}",
            key["priority"],
            str(key["max_waiting"] or "-"),
            time_text(datetime.fromisoformat(key["created_at"])),
            time_text(datetime.fromisoformat(key["revoked_at"])) if key["revoked_at"] else "-",
        )
        for key in found["keys"]
    ]
    print_table(("NAME", "KEY", "TEAM", "MAY", "WEIGHT", "PRIORITY", "WAITING", "CREATED", "REVOKED"), rows)


@app.command()
def revoke(name: NameArgument) -> None:
    """Revoke a key: every gateway refuses it within a second."""
    connect().delete(_route(name))
    out.print(f"revoked '{name}'")


def _route(name: str) -> str:
    """Quotes the name: names from before there were rules may contain any character."""
    return f"/registry/v1/keys/{quote(name, safe='')}"
