"""Workers, producers and brokers that die while events flow; `make test-faults`."""
