"""The doctor: what a database alias' server says, what is wrong or risky about it, and how large its pool should be."""
