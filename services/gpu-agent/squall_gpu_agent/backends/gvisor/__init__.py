"""The gVisor backend: sandboxes with a kernel of their own, run by runsc inside the namespaces of a slot."""
