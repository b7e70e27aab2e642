"""The core: the patch of Django's wrapper, its options, the pools of this process, sessions, faults, forks."""
