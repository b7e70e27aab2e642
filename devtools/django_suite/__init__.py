"""``make django-suite``: Django's own tests on this engine, beside the stock one.

``__main__`` sets up and shows, ``suite`` runs the same on several engines and judges, ``run`` is one run on one of them;
``outcomes`` is what a run tells and what two of them differ in, ``differences`` what of that is right, and ``environment``
Django's source with an interpreter for it. ``within`` is what the tests' own process imports, which has nothing else of
this project but its package.
"""
