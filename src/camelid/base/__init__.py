"""What every room may use: errors, registries, recipes, the runtime, progress and safe files."""
