"""All that is refused before a model loads: configs, pairs, routes, prompts, machines."""
