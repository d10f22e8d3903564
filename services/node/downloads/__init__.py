"""Downloads files in parallel ranges, and resumes them after a crash.

Pure modules decide (`ranges`, `transfer`, `answers`, `record`, `addresses`); `web`, `partials` and `downloads` do the I/O.
"""
