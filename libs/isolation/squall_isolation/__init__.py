"""What confines code of users on a machine, shared by agents (sandboxes) and builders (build rooms): the filter of
system calls, control groups. Starts nothing itself."""
