"""Volumes on this machine: versions brought here, and folders of them that containers can mount."""
