"""Translates GBNF grammars to the Lark grammars that llguidance compiles."""
