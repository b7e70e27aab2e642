"""The tests' site with the status page."""
