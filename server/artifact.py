"""Names of the files of a model version, relative to it."""

ADAPTER_CONFIG = "adapter/adapter_config.json"
ADAPTER_WEIGHTS = "adapter/adapter_model.safetensors"
ITEM_VECTORS = "item_vectors.safetensors"
STRATEGY_STATE = "strategy_state.safetensors"
