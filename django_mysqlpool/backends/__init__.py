"""The paths that ``ENGINE`` names, as Django wants them: a package with a ``base`` module each."""
