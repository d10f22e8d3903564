from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from services.cli.embedded.home import Home
from services.cli.embedded.secrets import load_secrets
from services.cli.errors import CommandError


def test_one_platform_per_home(home: Home) -> None:
    assert home.holder() is None
    with home.locked():
        assert home.holder() == os.getpid()
        with pytest.raises(CommandError, match=rf"is in use by another Corral \(pid {os.getpid()}\).*--home$"), home.locked():
            pass
    assert not (home.path / "lock").exists()
    with home.locked():
        pass


def test_a_lock_left_by_a_killed_platform_is_replaced(home: Home) -> None:
    (home.path / "lock").write_text("12345")
    assert home.holder() is None
    with home.locked():
        assert (home.path / "lock").read_text() == str(os.getpid())


def test_a_full_disk_is_refused(home: Home) -> None:
    home.require_space(1)
    with pytest.raises(CommandError, match=r"of free disk and Corral needs 1024\.0 TiB; free some"):
        home.require_space(2**50)


def test_a_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match=r"^cannot create .*; choose a folder that you may write to"):
        Home(tmp_path / "file" / "home").prepare()


def test_other_users_cannot_read_the_folders(home: Home) -> None:
    for folder in ("logs", "run", "valkey", "models", "node"):
        assert stat.S_IMODE((home.path / folder).stat().st_mode) == 0o700
    assert not (home.path.stat().st_mode & stat.S_IROTH)


def test_the_display_shortens_the_users_home() -> None:
    assert Home(Path.home() / ".corral").display == "~/.corral"
    assert Home(Path("/srv/corral")).display == "/srv/corral"


def test_secrets_are_created_once_and_are_private(home: Home) -> None:
    path = home.path / "secrets.json"
    made = load_secrets(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_secrets(path) == made
    assert len({made.database_password, made.valkey_password, made.registry_token}) == 3
    assert made.registry_token not in repr(made)


@pytest.mark.parametrize("text", ["", "[]", '{"database_password": "x"}'])
def test_damaged_secrets_are_refused(home: Home, text: str) -> None:
    path = home.path / "secrets.json"
    path.write_text(text)
    with pytest.raises(CommandError, match="is damaged; remove it"):
        load_secrets(path)
