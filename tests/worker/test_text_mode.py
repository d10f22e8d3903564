"""TextMode's child processes."""

from __future__ import annotations

import psutil
import pytest

from services.protocol.errors import InvalidModelFile
from services.worker.config import Settings
from services.worker.engine.fake import FakeRunner
from services.worker.text_mode import TextMode
from tests.doubles.gateway import VERSION


def test_an_invalid_tool_template_leaves_no_process() -> None:
    runner = FakeRunner()
    runner.tool_template = "{{ unfinished"
    settings = Settings.model_validate(
        {"redis_url": "redis://x", "node": "here", "replica": "r1", "version": VERSION, "slots": 1}
    )
    before = psutil.Process().children()
    with pytest.raises(InvalidModelFile, match="chat template"):
        TextMode(runner, settings)
    assert psutil.Process().children() == before
