"""The engines: packages that ``ENGINE`` names, each with a ``base`` module, which Django imports."""
