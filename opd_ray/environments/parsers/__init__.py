"""One file a format in which models write tool calls."""
