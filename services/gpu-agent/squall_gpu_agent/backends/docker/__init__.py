"""The Docker backend: containers of an engine, asked for over its socket."""
