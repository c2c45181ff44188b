"""The builder: turns an image spec into a content-addressed image. Does not run user functions."""
