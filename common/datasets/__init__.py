"""Any source of data to items and interactions."""
