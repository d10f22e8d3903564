"""Constrains answers to a grammar: a mask over the vocabulary at each token. Built on llguidance
(docs/decisions/0008-llguidance.md)."""

from services.worker.engine.grammar.compiler import Grammar, GrammarCompiler
from services.worker.engine.grammar.matcher import Matcher

__all__ = ["Grammar", "GrammarCompiler", "Matcher"]
