"""Sites with a companion in them, and other programs that the tests start."""
