"""Names of the files of a model version, relative to it."""

ADAPTER_CONFIG = "adapter/adapter_config.json"
ADAPTER_WEIGHTS = "adapter/adapter_model.safetensors"
ITEM_VECTORS = "item_vectors.safetensors"
ITEM_ROWS = "item_rows.safetensors"
"""What services would work out of many item vectors, see `server.serving.beside`; a version may lack it."""
STRATEGY_STATE = "strategy_state.safetensors"
