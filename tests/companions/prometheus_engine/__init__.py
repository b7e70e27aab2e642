"""The recipe of the documentation: somebody else's backend, pooled. ``ENGINE`` names this package."""
