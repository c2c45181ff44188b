"""The process inside a container that runs the user's code. Standard library only."""
