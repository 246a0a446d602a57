"""Where actors go: nodes, their memory, Ray, and jobs on a cluster."""
