"""One file a command; each parses its options, calls the house and prints."""
