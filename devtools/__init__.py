"""What the tests and the demo stand on: a private database server, and the demo itself."""
