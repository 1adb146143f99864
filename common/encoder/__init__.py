"""BERT with LoRA adapters, its frozen lower layers cached: the one place that builds it."""
