"""The parts of `ldmlab compare`: reading runs, rows, tables, plots, the page."""
