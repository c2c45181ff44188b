"""Everything that crosses the bus: messages, subjects and topology, as data. Does no I/O."""
