"""Normalizes JSON schemas to the form that llguidance compiles."""
