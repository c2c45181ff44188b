"""The agent: owns one machine, its devices, images, containers and the attempts that run in them."""
