"""What shows a pool to its operator. Nothing here is imported unless a project asks for it."""
