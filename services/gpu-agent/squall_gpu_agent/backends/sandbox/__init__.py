"""The sandbox backend: containers in their own namespaces, started by our own launcher."""
