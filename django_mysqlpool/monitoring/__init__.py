"""Shows people and monitoring systems how the pools are. Nothing here is imported or started unless asked for."""
