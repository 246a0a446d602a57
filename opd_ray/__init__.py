"""opd-ray: on-policy distillation with token selection (TIP) on Ray, vLLM and DeepSpeed."""

__version__ = "0.1.0"
