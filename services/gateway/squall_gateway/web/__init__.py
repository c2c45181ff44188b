"""Web endpoints: requests of browsers and other clients, on their way to containers and back."""
