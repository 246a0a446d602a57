"""The configurations that come with the package, one YAML a recipe."""
