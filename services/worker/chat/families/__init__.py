"""The tool-call families, one file per syntax, and the choice of a template's family."""

from __future__ import annotations

from services.worker.chat.families.deepseek import DEEPSEEK_V3, DEEPSEEK_V31
from services.worker.chat.families.gemma import FUNCTION_GEMMA, GEMMA4
from services.worker.chat.families.generic import GENERIC
from services.worker.chat.families.harmony import HARMONY
from services.worker.chat.families.hermes import HERMES
from services.worker.chat.families.llama3 import LLAMA3
from services.worker.chat.families.mistral import MISTRAL, MISTRAL_ARGS
from services.worker.chat.families.qwen_coder import QWEN_CODER
from services.worker.chat.family import Family

#: A template's family is the first one whose signs it contains. Specific families come first, the one without signs last.
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
    GENERIC,
)


def family_of(template: str) -> Family:
    return next(family for family in FAMILIES if family.is_used_by(template))
