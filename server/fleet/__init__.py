"""How the server reaches clients."""
