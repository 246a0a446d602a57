"""A file a part; each has ``run(findings, device, argument)`` and may import torch at its top."""
