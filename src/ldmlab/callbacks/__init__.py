"""What happens around training: budgets, exact resuming, progress, grids, previews of quality, logs."""
