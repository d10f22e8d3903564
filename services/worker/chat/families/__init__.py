"""One file per family of tool-call syntax, and the list from which a template's family is chosen."""

from __future__ import annotations

from services.worker.chat.families.deepseek import DEEPSEEK_V3, DEEPSEEK_V31
from services.worker.chat.families.gemma import FUNCTION_GEMMA, GEMMA4
from services.worker.chat.families.harmony import HARMONY
from services.worker.chat.families.hermes import HERMES
from services.worker.chat.families.llama3 import LLAMA3
from services.worker.chat.families.mistral import MISTRAL, MISTRAL_ARGS
from services.worker.chat.families.qwen_coder import QWEN_CODER
from services.worker.chat.family import Family

#: The first whose signs a template holds is its family, so the more particular stand first.
FAMILIES = (
    HARMONY,
    GEMMA4,
    FUNCTION_GEMMA,
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    MISTRAL_ARGS,
    MISTRAL,
    QWEN_CODER,
    HERMES,
    LLAMA3,
)


def family_of(template: str) -> Family:
    """Hermes's syntax is what a model is asked for whose template knows none: the most widespread one."""
    return next((family for family in FAMILIES if family.is_used_by(template)), HERMES)
