"""``make soak``: a ledger, processes of threads that work on it, and every fault that can be had, for as long as you like.

``__main__`` sets up and shows, ``run`` is one run, ``faults`` what strikes; ``worker`` is a process of threads, ``bank``
what they do, ``interrupts`` the signals of its main thread, ``records`` what they tell, and ``ledger`` what must hold at
the end.
"""
