"""The `squall` command. Owns what is typed and what is printed; everything else is the SDK's public surface."""
