"""Buckets as folders of containers: a small file server over an object store, for the kernel's FUSE."""
