"""Laws of the programs that measure and forecast."""
