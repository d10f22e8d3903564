"""The registry's tables in PostgreSQL, and the modules that read and write them."""
