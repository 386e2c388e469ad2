"""Runs programs that a model wrote against tests, where neither can do harm nor forge a verdict.

Two processes per program, both confined before they run a line that isn't ours (`confine`,
`seccomp`). The *player* holds the program and answers calls. The *judge* holds the tests and
compares what comes back, so that no expected value is ever where the program could find it, and
nothing that the program does to its own interpreter matters. They speak plain data over two pipes
(`wire`). `runner` starts both, waits, cleans up; the rest of pintern imports from it alone. The
files that run inside import nothing but the standard library.
"""
