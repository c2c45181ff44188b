"""The embedded platform: the bus server and all services in one process, for one machine. Decides nothing."""
